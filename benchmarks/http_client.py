"""A small HTTP client on asyncio, which costs less of the machine than the server that it times."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    head: bytes
    body: bytes

    @property
    def stays_open(self) -> bool:
        """Whether the connection takes another request."""
        return b"connection: close" not in self.head.lower()


def request(path: str, body: bytes = b"", *, kind: str = "image/jpeg", method: str = "POST") -> bytes:
    """Return a request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer.

    Raises:
        ConnectionError: The connection ended before it.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1])) if length else b""
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ConnectionError("the connection ended before the answer") from error
    return Answer(int(head[9:12]), head, body)


class Client:
    """Connections to one server that are used again.

    Args:
        port: On this machine.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, data: bytes) -> Answer:
        """Send a request as it is, and read the answer."""
        while True:
            kept = bool(self._free)
            reader, writer = self._free.pop() if kept else await self.connect()
            try:
                writer.write(data)
                answer = await read_answer(reader)
            except ConnectionError:
                writer.close()
                if kept:  # it was closed for being idle
                    continue
                raise
            if answer.stays_open:
                self._free.append((reader, writer))
            else:
                writer.close()
            return answer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def close(self) -> None:
        """Close all connections."""
        for _, writer in self._free:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        self._free.clear()


@contextmanager
def server(model: str | None, *options: str) -> Iterator[int]:
    """Run ``conformer-vision serve`` in a process of its own; yield its port."""
    words = [sys.executable, "-m", "conformer_vision", "serve", *([] if model is None else [model])]
    process = subprocess.Popen([*words, "--port=0", *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving at"):
            sys.exit(f"the server did not start: {line}")
        yield int(line.rpartition(":")[2])
    finally:
        process.terminate()
        if process.wait(timeout=60) != 0:
            print(f"the server ended with status {process.returncode}", file=sys.stderr)
