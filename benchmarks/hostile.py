"""Hostile requests to a server, from a seed: what it answers, whether it hangs, and what memory it takes.

Nothing but an answer with an error in one line of JSON, or the end of the connection, is right for a request
that is broken; a request that is whole has to have the same answer to the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from tempfile import TemporaryDirectory

from PIL import Image

from http_client import Answer, Client, read_answer, request

AT_ONCE = 16
LONGEST = 60.0
"""Seconds after which a request counts as hanging; the server's own deadline is much shorter."""
PACE = 0.2
"""Seconds between two bytes of a slow client."""
FORMATS = ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm", "ico", "tga")
_MEMORY = re.compile(rb"^process_resident_memory_bytes (\S+)$", re.MULTILINE)
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@dataclass
class Report:
    """What became of hostile requests."""

    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Answers by status; ``closed`` for connections that ended without one."""
    kinds: dict[str, int] = field(default_factory=dict)
    hangs: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers of another form, other answers to whole requests, and what schemathesis found."""
    memory_mb: list[float] = field(default_factory=list)
    """Resident memory after each tenth of the requests, the first of which warms up."""

    def text(self) -> str:
        """Return what is printed."""
        found = f"{self.hangs} hangs, {len(self.wrong)} wrong answers"
        lines = [f"{self.requests:,} hostile requests, and schemathesis: {found}"]
        lines += [f"  {status:<8} {number:7,}" for status, number in sorted(self.statuses.items())]
        lines += [f"  {line}" for line in self.wrong[:20]]
        lines.append(
            "  memory in MB after each tenth: " + ", ".join(f"{each:.0f}" for each in self.memory_mb)
        )
        return "\n".join(lines)


def image(rng: random.Random, kind: str = "png") -> bytes:
    """Return a whole image file."""
    size = rng.randrange(1, 80), rng.randrange(1, 80)
    pixels = Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1]))
    buffer = BytesIO()
    pixels.save(buffer, kind)
    return buffer.getvalue()


def fuzzed(rng: random.Random) -> bytes:
    """Return a file with some bytes changed, cut out or doubled."""
    data = bytearray(image(rng, rng.choice(FORMATS)))
    for _ in range(rng.randrange(1, 12)):
        place, length = rng.randrange(len(data) or 1), rng.randrange(1, 9)
        change = rng.choice(["other", "out", "double"])
        piece = rng.randbytes(length) if change == "other" else data[place : place + length] * 2
        data[place : place + length] = b"" if change == "out" else piece
    return bytes(data)


def bomb(rng: random.Random) -> bytes:
    """Return a small file of very many pixels, whole or only its head."""
    edge = rng.choice([4_000, 5_000, 20_000, 60_000])
    row = bytes(edge * 3 + 1)
    packer = zlib.compressobj(1)
    rows = edge if edge <= 4_000 else 1
    body = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def form(rng: random.Random) -> bytes:
    """Return a form, more or less whole."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="../../%d.png"\r\n\r\n' % number
        + rng.choice([image, fuzzed, lambda rng: rng.randbytes(50)])(rng)
        + b"\r\n"
        for number in range(rng.randrange(1, 30))
    ]
    rng.shuffle(parts)
    return b"".join(parts)[: rng.randrange(1, 200_000)] + rng.choice([b"--b--\r\n", b"", b"--b"])


def packed(rng: random.Random) -> bytes:
    """Return JSON, more or less as it should be."""
    data = base64.b64encode(rng.choice([image, fuzzed])(rng)).decode()
    content = rng.choice(
        [
            {"images": [data]},
            {"images": [data[:-1]]},
            {"images": [{"name": "\ud800\u0000" * 50, "data": data}]},
            {"images": [None, 1, [], {}]},
            {"images": [data] * 40},
            {"images": "http://127.0.0.1:1/x.png"},
            [[[[[]]]]],
        ]
    )
    text = json.dumps(content)
    return rng.choice([text, text[: len(text) // 2], "[" * 100_000, "1" * 10_000]).encode()


def raw(rng: random.Random) -> bytes:
    """Return what is no HTTP, or nearly."""
    return rng.choice(
        [
            rng.randbytes(200),
            b"GET " + b"a" * 70_000,
            b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: image/png\r\n\r\nzz\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nxxxxx",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
            b"DELETE /%00%ff HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )


def whole(body: Callable[[random.Random], bytes], *kinds: str) -> Callable[[random.Random], bytes]:
    """Return what makes a request with such a body, of one of the content types."""

    def make(rng: random.Random) -> bytes:
        path = rng.choice(
            ["/predict", "/predict", "/predict?top_k=2", "/predict?top_k=-1", "/explain", "/nope"]
        )
        return request(path, body(rng), kind=rng.choice(kinds))

    return make


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "fuzzed image": whole(fuzzed, "image/png", "application/octet-stream"),
    "bomb": whole(bomb, "image/png"),
    "form": whole(form, "multipart/form-data; boundary=b", "multipart/form-data"),
    "JSON": whole(packed, "application/json"),
    "wrong type": whole(
        image, "application/json", "text/html", "multipart/form-data; boundary=b", "image/../x"
    ),
    "no HTTP": raw,
    "large": whole(lambda rng: bytes(rng.randrange(100_000, 2_000_000)), "image/png", "application/json"),
}
CUT = ("truncated", "slow", "left")
"""Requests that never come to their end: cut off, sent byte by byte, or left before the answer."""
SHARES = {"bomb": 2, "large": 2, "slow": 2} | dict.fromkeys(["fuzzed image", "form", "JSON"], 20)


async def one(client: Client, rng: random.Random, kind: str) -> Answer | None:
    """Send one hostile request; None for a connection that ended without an answer."""
    maker = MAKERS.get(kind, MAKERS["fuzzed image"])
    data = maker(rng)
    reader, writer = await client.connect()
    try:
        if kind == "truncated":
            writer.write(data[: rng.randrange(1, len(data))])
            writer.write_eof()
        elif kind == "left":
            writer.write(data)
            await writer.drain()
            return None
        elif kind == "slow":
            for place in range(rng.randrange(5, 40)):
                writer.write(data[place : place + 1])
                await writer.drain()
                await asyncio.sleep(PACE)
        else:
            writer.write(data)
        return await read_answer(reader)
    except (ConnectionError, OSError):
        return None
    finally:
        writer.close()
        with suppress(ConnectionError, OSError):
            await writer.wait_closed()


def problem(answer: Answer) -> str | None:
    """Return what is wrong with the form of an answer."""
    if answer.status == 500 or (answer.status == 503 and b"retry-after" not in answer.head.lower()):
        return f"status {answer.status}: {answer.body[:200]!r}"
    if answer.status >= 400:
        try:
            line = json.loads(answer.body)["error"]
        except (ValueError, KeyError, TypeError):
            return f"status {answer.status} without an error: {answer.body[:200]!r}"
        if "\n" in line or "Traceback" in line or "site-packages" in line:
            return f"status {answer.status}: {line[:200]!r}"
    return None


async def memory(client: Client) -> float:
    """Return the resident memory of the server in MB."""
    answer = await client.send(request("/metrics", method="GET"))
    found = _MEMORY.search(answer.body)
    return float(found[1]) / 1e6 if found else 0.0


async def attack(port: int, requests: int, *, seed: int = 0, fuzz: bool = True) -> Report:
    """Send hostile requests, and a whole one after each tenth.

    Args:
        port: Of the server on this machine.
        requests: How many.
        seed: Decides what is sent.
        fuzz: Whether to run schemathesis too.
    """
    report, client = Report(requests), Client(port)
    names = [*MAKERS, *CUT]
    weights = [SHARES.get(name, 8) for name in names]
    good = request("/predict", image(random.Random(1)), kind="image/png")
    wanted = _answers(await client.send(good))
    statuses, kinds = Counter[str](), Counter[str]()
    places = asyncio.Semaphore(AT_ONCE)

    async def send(number: int) -> None:
        own = random.Random(f"{seed} {number}")
        kind = own.choices(names, weights)[0]
        kinds[kind] += 1
        async with places:
            try:
                async with asyncio.timeout(LONGEST):
                    answer = await one(client, own, kind)
            except TimeoutError:
                report.hangs += 1
                report.wrong.append(f"request {number} ({kind}) hangs")
                return
        statuses["closed" if answer is None else str(answer.status)] += 1
        if answer is not None and (line := problem(answer)) is not None:
            report.wrong.append(f"request {number} ({kind}): {line}")

    tenth = max(requests // 10, 1)
    for start in range(0, requests, tenth):
        await asyncio.gather(*(send(number) for number in range(start, min(start + tenth, requests))))
        if _answers(await client.send(good)) != wanted:
            report.wrong.append(f"after {start + tenth} requests a whole one has another answer")
        report.memory_mb.append(await memory(client))
    if fuzz:
        report.wrong += await asyncio.to_thread(_schemathesis, port)
        report.memory_mb.append(await memory(client))
    await client.close()
    report.statuses, report.kinds = dict(statuses), dict(kinds)
    return report


def _answers(answer: Answer) -> object:
    """Return what of an answer does not depend on the time."""
    prediction = json.loads(answer.body)["predictions"][0]
    return prediction["labels"], [round(each, 4) for each in prediction["probabilities"]]


def _schemathesis(port: int) -> list[str]:
    """Run schemathesis over the server's openapi.json; return what it found."""
    url = f"http://127.0.0.1:{port}/openapi.json"
    words = [sys.executable, "-m", "schemathesis.cli", "run", url, f"--checks={_CHECKS}", "--max-examples=50"]
    with TemporaryDirectory() as folder:  # it leaves files where it runs
        done = subprocess.run(
            [*words, "--generation-deterministic"], capture_output=True, text=True, check=False, cwd=folder
        )
    if done.returncode == 0:
        return []
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return [f"schemathesis: {line}" for line in lines[-30:]]
