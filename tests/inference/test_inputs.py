"""Images of every kind that Python code hands over: each is read as Pillow reads it, and none is closed."""

import gzip
import http.server
import io
import mmap
import os
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conformer_vision import explain
from conformer_vision.errors import UserError
from conformer_vision.explain import localize
from conformer_vision.inference import Predictor
from conformer_vision.runtime.inputs import named_images


@pytest.fixture(scope="module")
def predictor(resnet_run: Path) -> Predictor:
    return Predictor(resnet_run, device="cpu", batch_size=3)


@pytest.fixture
def png(colours: Image.Image) -> bytes:
    buffer = io.BytesIO()
    colours.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def path(png: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(png)
    return path


def pixels(source: Any) -> np.ndarray[Any, Any]:
    """The one image that comes of what is given."""
    (image,) = named_images(source)
    return np.asarray(image.open())


def spooled(png: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115 - closed by the garbage collector
    file.write(png)
    return file


def pipe(png: bytes) -> Any:
    out, into = os.pipe()
    os.write(into, png)  # smaller than a pipe's buffer
    os.close(into)
    return open(out, "rb")


def temporary(png: bytes) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it has what it wraps only when that is asked for
    file.write(png)
    return file


def zipped(png: bytes) -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.png", png)
    return zipfile.ZipFile(buffer).open("photo.png")


def mapped(png: bytes) -> Any:
    mapped = mmap.mmap(-1, len(png))
    mapped.write(png)
    return mapped


def only_read(png: bytes) -> Any:
    class Response:
        """Has nothing but `read`, as the answers of some clients."""

        def read(self) -> bytearray:
            return bytearray(png)

    return Response()


KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "BytesIO": io.BytesIO,
    "BufferedReader": lambda png: io.BufferedReader(io.BytesIO(png)),  # type: ignore[arg-type]
    "gzip": lambda png: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(png))),
    "spooled": spooled,
    "temporary": temporary,
    "pipe": pipe,
    "zip": zipped,
    "mmap": mapped,
    "only read": only_read,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_bytes_and_file(
    kind: str, predictor: Predictor, colours: Image.Image, png: bytes
) -> None:
    """Alone and in a list, and it stays open."""
    wanted = np.asarray(colours)
    source = KINDS[kind](png)
    assert (pixels(source) == wanted).all()
    assert not getattr(source, "closed", False)
    for given in (KINDS[kind](png), [KINDS[kind](png)], iter([KINDS[kind](png)])):
        (answer,) = predictor(given)
        assert answer.error is None
        assert answer.probabilities == pytest.approx(predictor(colours)[0].probabilities, rel=1e-4)


def test_open_files_are_read_from_the_start_like_pillow_does(
    predictor: Predictor, path: Path, colours: Image.Image
) -> None:
    with path.open("rb") as file:
        file.seek(10)
        with Image.open(file) as image:
            assert (np.asarray(image) == np.asarray(colours)).all()
        file.seek(10)
        first, second, third = predictor([file, file, path])
        assert first.name == second.name == third.name == str(path)
        assert first.error is None and first.probabilities == second.probabilities == third.probabilities
        assert not file.closed


def test_a_response_of_a_web_server(png: bytes, colours: Image.Image) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(png)))
            self.end_headers()
            self.wfile.write(png)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/") as response:
            assert (pixels(response) == np.asarray(colours)).all()


def test_arrays(predictor: Predictor, colours: Image.Image) -> None:
    array = np.asarray(colours)
    for given in (array, np.asfortranarray(array), array[::-1][::-1], np.ascontiguousarray(array)):
        assert (pixels(given) == array).all()
    assert (pixels(array[:, ::2]) == array[:, ::2]).all()
    grey = array[..., 0]
    assert (pixels(grey) == grey[..., None]).all() and (pixels(grey[..., None]) == grey[..., None]).all()
    clear = np.concatenate([array, np.zeros_like(array[..., :1])], axis=-1)  # transparent everywhere
    assert (pixels(clear) == 255).all()
    answers = predictor([array, colours])
    assert answers[0].probabilities == answers[1].probabilities
    assert predictor(array)[0].probabilities == pytest.approx(answers[0].probabilities, rel=1e-4)
    assert [answer.name for answer in predictor([array, array])] == ["image 1", "image 2"]


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((8, 9, 3)), r"float64 of shape \(8, 9, 3\); give 8-bit values \(uint8\)"),
        (np.zeros((8, 9), np.uint16), "uint16 .*uint8"),
        (np.zeros((8, 9, 3), bool), "bool .*uint8"),
        (np.zeros((3, 8, 9), np.uint8), r"channels first; give \(H, W, C\)"),
        (np.zeros((8, 9, 2), np.uint8), "of 1, 3 or 4 channels"),
        (np.zeros((8, 9, 5), np.uint8), "of 1, 3 or 4 channels"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"list\(array\)"),
        (np.zeros(7, np.uint8), r"give \(H, W\)"),
        (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)"),
        (np.uint8(3), "type uint8"),
    ],
)
def test_arrays_that_are_no_image(predictor: Predictor, array: Any, remedy: str) -> None:
    """One line, before any work."""
    good = np.zeros((8, 9, 3), np.uint8)
    for given, number in ((array, 1), ([good, array], 2)):
        with pytest.raises(UserError, match=f"input {number} .*{remedy}") as raised:
            predictor.predict(given)
        assert "\n" not in str(raised.value)


def test_arrays_of_paths_are_several(predictor: Predictor, path: Path) -> None:
    for paths in (np.array([str(path)] * 2), np.array([path, path], object)):
        assert [answer.error for answer in predictor(paths)] == [None, None]


def test_what_the_caller_changes_later(predictor: Predictor, colours: Image.Image, png: bytes) -> None:
    """A camera writes each frame into the same memory."""
    other = Image.new("RGB", colours.size, "red")
    buffer = io.BytesIO()
    other.save(buffer, "PNG")
    wanted = [answer.probabilities for answer in predictor([colours, other])]

    def arrays() -> Iterator[Any]:
        frame = np.asarray(colours).copy()
        yield frame
        frame[:] = (255, 0, 0)
        yield frame

    def bytearrays() -> Iterator[Any]:
        frame = bytearray(png)
        yield frame
        frame[:] = buffer.getvalue()
        yield frame

    def files() -> Iterator[Any]:
        for content in (png, buffer.getvalue()):
            with closing(io.BytesIO(content)) as file:  # closed before the answer is there
                yield file

    for kind in (arrays, bytearrays, files):
        for answer, probabilities in zip(predictor(kind()), wanted, strict=True):
            assert answer.probabilities == pytest.approx(probabilities, rel=1e-4), kind


def test_files_that_cannot_be_read_fail_alone(predictor: Predictor, path: Path, png: bytes) -> None:
    closed = io.BytesIO(png)
    closed.close()
    released = memoryview(png)
    released.release()

    class Broken(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(5, "Input/output error")

    answers = predictor([path, closed, Broken(), io.BytesIO(b""), io.BytesIO(b"no image"), released, path])
    assert [answer.error is None for answer in answers] == [True, *[False] * 5, True]
    assert all(f"image {number}: " in str(answers[number - 1].error) for number in range(2, 7))
    assert not any("\n" in str(answer.error) for answer in answers)


def test_files_that_are_not_binary(predictor: Predictor, path: Path, png: bytes) -> None:
    class Asynchronous:
        async def read(self) -> bytes:
            return png

    class Text:
        def read(self) -> str:
            return "text"

    with path.open() as text:
        mistakes = ((text, "opened as text; open it with 'rb'"), (Text(), "returns str; open it with 'rb'"))
        for given, remedy in (*mistakes, (Asynchronous(), "asynchronously; give the bytes")):
            for inputs in (given, [given]):
                with pytest.raises(UserError, match=remedy):
                    predictor(inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 7, 1.5, object()])
def test_what_is_neither_one_image_nor_several(predictor: Predictor, given: Any) -> None:
    for inputs in (given, [given]):
        with pytest.raises(UserError, match=f"input 1 is of type {type(given).__name__}; give paths, bytes"):
            predictor(inputs)


def test_explanations_and_regions_take_the_same_kinds(
    conformer_run: Path, colours: Image.Image, png: bytes
) -> None:
    """A pipe too, though a large JPEG is read twice."""
    jpeg = io.BytesIO()
    colours.resize((1600, 1200)).save(jpeg, "JPEG", quality=30)
    assert len(jpeg.getvalue()) < 1 << 16  # fits into a pipe
    given = [np.asarray(colours), bytearray(png), io.BytesIO(png), pipe(png), pipe(jpeg.getvalue())]
    (wanted,) = explain(conformer_run, colours, device="cpu")
    *found, large = explain(conformer_run, given, device="cpu")
    for each in found:
        assert each.error is None and (each.maps == wanted.maps).all()
    assert large.error is None and large.image is not None and large.image.size == (1600, 1200)
    regions = localize(
        conformer_run, iter([np.asarray(colours), io.BytesIO(png)]), device="cpu", method="cam"
    )
    assert [image.error for image in regions.images] == [None, None]
    assert regions.images[0].regions == regions.images[1].regions
    assert len(localize(conformer_run, io.BytesIO(png), device="cpu", method="cam").images) == 1
