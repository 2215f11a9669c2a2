"""What is refused: with one line of JSON, before it costs anything, and without the server's inside."""

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer_vision.errors import UserError
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from http_server import PNG, Server, Stub, png, run, serving

KINDS = ("image/png", "application/octet-stream", "application/json", "multipart/form-data; boundary=b")
SMALL = Limits(max_body_mb=0.01, max_megapixels=0.01, max_images=3, deadline_seconds=5)


def check_refused(answer: httpx.Response, status: int, text: str = "") -> None:
    """One line of JSON that says what is wrong."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert text in error
    assert "\n" not in error and "Traceback" not in error and "site-packages" not in error


async def pieces(number: int, read: list[int]) -> AsyncIterator[bytes]:
    """A body that says nothing of its length."""
    for piece in range(number):
        read.append(piece)
        yield bytes(1000)


def test_bodies_that_are_too_large() -> None:
    async def test() -> None:
        async with serving(Stub(), limits=SMALL) as server:
            read: list[int] = []
            for kind in KINDS:
                long = await server.client.post(
                    "/predict",
                    content=pieces(100, read),
                    headers={"Content-Type": kind, "Content-Length": "100000"},
                )
                check_refused(long, 413, "larger than 0.01 MB")
                assert not read
            for kind in KINDS[:3]:
                chunked = await server.client.post(
                    "/predict", content=pieces(100, read), headers={"Content-Type": kind}
                )
                check_refused(chunked, 413, "larger than 0.01 MB")
                assert len(read) <= 12  # the rest is not read
                read.clear()
            assert server.service.bodies.held == 0

    run(test)


def test_a_body_that_comes_too_slowly() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"begin"
        await asyncio.sleep(60)

    async def test() -> None:
        async with serving(Stub(), limits=Limits(deadline_seconds=0.1)) as server:
            answer = await server.client.post("/predict", content=slow(), headers=PNG)
            check_refused(answer, 408, "did not arrive within 0.1 s")
            assert server.service.bodies.held == server.service.uploads.held == 0

    run(test)


def test_bodies_together_are_bounded() -> None:
    """Slow uploads keep a bounded number of bytes, and others out only beyond it."""
    go = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(9000)
        await go.wait()

    async def test() -> None:
        async with serving(Stub(), limits=SMALL) as server, asyncio.TaskGroup() as group:
            post = server.client.post
            first = [group.create_task(post("/predict", content=slow(), headers=PNG)) for _ in range(8)]
            await server.until(lambda: server.service.bodies.held == 8 * 9000)
            refused = await post("/predict", content=bytes(9000), headers=PNG)
            check_refused(refused, 503, "too many bodies")
            assert refused.headers["retry-after"] == "1"
            assert (await server.predict()).status_code == 200
            go.set()
            assert {(await task).status_code for task in first} == {422}
            assert server.service.bodies.held == 0

    run(test)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "imagex/png"])
def test_other_content_types(kind: str) -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            answer = await server.client.post("/predict", content=png(), headers={"Content-Type": kind})
            check_refused(answer, 415, "send an image as image/…")
            packed = await server.client.post(
                "/predict", content=zlib.compress(png()), headers=PNG | {"Content-Encoding": "deflate"}
            )
            check_refused(packed, 415, "Content-Encoding 'deflate'")

    run(test)


IMAGE = base64.b64encode(png()).decode()
WRONG_JSON = {
    "": "the body is no JSON",
    "{": "the body is no JSON",
    "[" * 50_000: "the body is no JSON",
    "[]": "no list of images",
    '{"image": "x"}': "no list of images",
    '{"images": {}}': "no list of images",
    '{"images": []}': "holds no image",
    '{"images": [1]}': "image 1 is neither",
    '{"images": [null]}': "image 1 is neither",
    '{"images": [{"name": "x"}]}': "image 1 is neither",
    '{"images": [{"name": 1, "data": "aaaa"}]}': "image 1 is neither",
    '{"images": [{"data": "aaaa", "url": "http://x"}]}': "image 1 is neither",
    '{"images": ["aaaa"], "top_k": 1}': "'top_k', which means nothing here",
    '{"images": ["é"]}': "image 1 is not base64",
    '{"images": ["a"]}': "image 1 is not base64",
    '{"images": ["data:image/png;base64,aaaa"]}': "image 1 is not base64",
    '{"images": ["http://127.0.0.1/x.png"]}': "image 1 is not base64",
    json.dumps({"images": [IMAGE, "%%%%"]}): "image 2 is not base64",
}


def test_json_that_holds_no_images() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            for body, line in WRONG_JSON.items():
                answer = await server.client.post(
                    "/predict", content=body.encode(), headers={"Content-Type": "application/json"}
                )
                check_refused(answer, 400, line)
            many = await server.client.post("/predict", json={"images": [IMAGE] * 17})
            check_refused(many, 413, "more than 16 images")
            wrapped = await server.client.post("/predict", json={"images": [IMAGE[:9] + "\n" + IMAGE[9:]]})
            assert wrapped.status_code == 200

    run(test)


def test_forms_that_hold_no_images() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            for body, line in {
                b"": "no image",
                b"--b--\r\n": "no image",
                b"no form at all": "no multipart form",
                b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n": "no multipart form",
                b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n': "'a' is no file",
                b"--b\r\n" + b"X: " + b"x" * 9000 + b"\r\n\r\n": "no multipart form",
            }.items():
                answer = await server.client.post(
                    "/predict", content=body, headers={"Content-Type": KINDS[3]}
                )
                check_refused(answer, 400, line)
            without = await server.client.post(
                "/predict", content=b"x", headers={"Content-Type": "multipart/form-data"}
            )
            check_refused(without, 400, "missing boundary")
            many = await server.client.post("/predict", files=[("x", ("a.png", png()))] * 17)
            check_refused(many, 413, "more than 16 images")

    run(test)


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many pixels in a few bytes; its pixels are not there, so that decoding it would fail."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return start + struct.pack(">I", 0) + b"IDAT"


def test_pixels_are_counted_before_they_are_decoded() -> None:
    async def test() -> None:
        async with serving(Stub(), limits=SMALL) as server:
            images = {"bomb": bomb(60_000, 60_000), "just": png(size=(50, 40)), "more": bomb(101, 100)}
            answer = await server.predict(**images)
        assert answer.status_code == 200
        first, good, more = answer.json()["predictions"]
        assert "3600000000 pixels" in first["error"]  # beyond what is decoded anywhere
        assert good["error"] is None
        assert "101 × 100 pixels are more than the limit of 10000" in more["error"]

    run(test)


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("top_k=0", "top_k='0': must be a whole number from 1 on"),
        ("top_k=-1", "must be a whole number"),
        ("top_k=1.5", "must be a whole number"),
        ("top_k=", "must be a whole number"),
        ("top_k=٣", "must be a whole number"),
        ("top_k=" + "9" * 5000, "must be a whole number"),
        ("top_k=1&top_k=2", "given twice"),
        ("topk=1", "unknown parameter 'topk'; /predict has top_k; did you mean top_k?"),
    ],
)
def test_parameters_that_are_wrong(query: str, line: str) -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            check_refused(await server.predict(query=f"?{query}"), 400, line)

    run(test)


def test_paths_and_methods_that_are_not_there() -> None:
    async def test() -> None:
        async with serving(Stub()) as server:
            get = server.client.get
            for path in ("/nope", "/predict/", "/%2e%2e/etc/passwd", "/page/index.html", "/index.html%00"):
                check_refused(await get(path), 404, "GET /docs lists")
            wrong = await get("/predict")
            check_refused(wrong, 405, "does not take GET")
            assert wrong.headers["allow"] == "POST"
            check_refused(await server.client.post("/health"), 405)

    run(test)


def test_names_in_answers_are_short_and_plain() -> None:
    names = {
        "../../etc/passwd": "passwd",
        "C:\\photos\\a.png": "a.png",
        "a\nb\x00.png": "a?b?.png",
        "x" * 500: "x" * 120,
        "": "image 1",
        "\ud800.png": "?.png",
        "猫.png": "猫.png",
    }

    async def test() -> None:
        async with serving(Stub()) as server:
            for name, wanted in names.items():
                images = [{"name": name, "data": IMAGE}]
                body = json.dumps({"images": images}).encode()
                answer = await server.client.post(
                    "/predict", content=body, headers={"Content-Type": "application/json"}
                )
                assert answer.json()["predictions"][0]["name"] == wanted

    run(test)


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key\n\n  second-key \n")

    async def test() -> None:
        async with serving(Stub(), keys=Keys(str(file))) as server:
            for shown in (
                "",
                "first-key",
                "Bearer",
                "Bearer first-ke",
                "Basic first-key",
                "Bearer first-key2",
            ):
                for method, path in (
                    ("POST", "/predict"),
                    ("POST", "/reload"),
                    ("GET", "/metrics"),
                    ("GET", "/model"),
                ):
                    answer = await server.client.request(method, path, headers={"Authorization": shown})
                    check_refused(answer, 401, "Authorization: Bearer KEY")
                    assert answer.headers["www-authenticate"] == "Bearer"
            for key in ("Bearer first-key", "bearer second-key"):
                server.client.headers["Authorization"] = key
                assert (await server.predict()).status_code == 200
                assert (await server.client.post("/reload")).status_code == 200
            del server.client.headers["Authorization"]
            for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
                assert (await server.client.get(path)).status_code == 200

    run(test)


def test_reload_over_http_needs_a_key_and_names_no_path(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    stub = Stub()

    async def test() -> None:
        async with serving(stub) as server:
            check_refused(await server.client.post("/reload"), 403, "--api_key_file")
        async with serving(stub, keys=Keys(str(tmp_path / "key"))) as server:

            def broken() -> Any:
                raise UserError(f"{tmp_path}/best.safetensors is damaged; train it again")

            server.service._load = broken
            answer = await server.client.post("/reload", headers={"Authorization": "Bearer k"})
            check_refused(answer, 409, "the old one stays: best.safetensors is damaged; train it again")

    run(test)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"two words", "one per line"),
        (b"k" * 100_001, "one per line"),
    ],
)
def test_key_files_without_keys(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(UserError, match=line):
        Keys(str(file))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Keys(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "values", [{"max_batch": 0}, {"max_wait_ms": -1}, {"deadline_seconds": float("nan")}, {"max_images": 17}]
)
def test_limits_that_make_no_sense(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))}="):
        Limits(**values)  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(IMAGE),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["images", "name", "data"]) | st.text(max_size=5), inner, max_size=4
        )
    ),
    max_leaves=12,
)
form_parts = st.lists(
    st.sampled_from(
        [
            b"--b\r\n",
            b"--b--\r\n",
            b'Content-Disposition: form-data; name="a"; filename="b.png"',
            b"\r\n",
            b"\r\n\r\n",
        ]
    )
    | st.just(png())
    | st.binary(max_size=40),
    max_size=12,
).map(b"".join)
cut_images = st.tuples(st.integers(0, 5), st.integers(0, 6000)).map(lambda made: png(made[0])[: made[1]])
bodies = (
    st.tuples(st.just("application/json"), json_values.map(lambda value: json.dumps(value).encode()))
    | st.tuples(st.sampled_from(KINDS), st.binary(max_size=200))
    | st.tuples(st.just(KINDS[3]), form_parts)
    | st.tuples(st.sampled_from(KINDS[:2]), cut_images)
)


def test_whatever_comes_has_an_answer() -> None:
    with asyncio.Runner() as runner:
        serve = serving(Stub())
        server = runner.run(serve.__aenter__())

        @settings(max_examples=150, deadline=None)
        @given(bodies)
        def send(sent: tuple[str, bytes]) -> None:
            kind, body = sent
            post = server.client.post("/predict", content=body, headers={"Content-Type": kind})
            answer = runner.run(asyncio.wait_for(post, timeout=10))
            assert answer.status_code in (200, 400, 413, 422), answer.text
            if answer.status_code != 200:
                check_refused(answer, answer.status_code)
            runner.run(check_nothing_is_held(server))

        send()
        runner.run(serve.__aexit__(None, None, None))


async def check_nothing_is_held(server: Server) -> None:
    service = server.service
    assert (
        service.bodies.held == service.uploads.held == service.batcher.waiting == service.batcher._coming == 0
    )
    assert (await server.predict()).status_code == 200
