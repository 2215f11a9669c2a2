"""One image at a time, in this process."""

from io import BytesIO
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image, ImageFile

from conformer_vision.check import inspect
from conformer_vision.check.inspect import (
    ImageReader,
    Inspection,
    Limits,
    inspect_image,
    page_thumbnail,
)
from conformer_vision.data.base import ImageSource, SubsetSource
from conformer_vision.data.folder import FileSource
from image_sets import opened, patches, with_size


def look(path: Path, **limits: int) -> Inspection:
    return inspect_image(ImageReader([FileSource(["a", "b"], [path], [0])], Limits(**limits)), 0)


def save(image: Image.Image, path: Path, kind: str | None = None, **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def kinds(found: Inspection) -> list[str]:
    return [kind for kind, _ in found.problems]


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPEG", "a.jfif", "a.png", "a.webp", "a.bmp", "a.tif", "a.tiff", "a.gif"]
)
def test_a_good_image_has_no_problem(name: str, tmp_path: Path) -> None:
    found = look(save(patches(0), tmp_path / name))
    assert found.problems == []
    assert found.fingerprint is not None
    with Image.open(tmp_path / name) as image:
        grey = image.convert("RGB").convert("L")
    assert found.fingerprint.perceptual_hash == int(str(imagehash.phash(grey)), 16), "ImageHash's own"
    thumbnail = np.frombuffer(found.fingerprint.thumbnail, np.uint8)
    assert thumbnail.mean() == pytest.approx(np.asarray(grey).mean(), abs=1)


def test_another_format_than_the_name_says(tmp_path: Path) -> None:
    found = look(save(patches(0), tmp_path / "a.jpg", "PNG"))
    assert found.problems == [("extension", "named .jpg, is PNG")]
    assert found.fingerprint is not None, "it is compared with others all the same"


def test_images_of_phones_are_no_animations(tmp_path: Path) -> None:
    def both(name: str, kind: str | None = None) -> Path:
        return save(patches(0), tmp_path / name, kind, save_all=True, append_images=[patches(1)])

    assert look(both("a.jpg", "MPO")).problems == []
    for name in ("a.gif", "a.webp", "a.png", "a.avif"):
        assert kinds(look(both(name))) == ["several_frames"]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.jp2", "colour.tif", "grey.pgm"])
def test_few_bits_in_16(bits: int, name: str, tmp_path: Path) -> None:
    colours = (3,) * name.startswith("colour")
    values = np.random.default_rng(0).integers(0, 1 << bits, (40, 40, *colours), dtype=np.uint16)
    values[0, 0] = (1 << bits) - 1
    if colours:
        tifffile.imwrite(tmp_path / name, values, photometric="rgb")
    else:
        Image.fromarray(values).save(tmp_path / name)
    assert kinds(look(tmp_path / name)) == (["low_range"] if bits < 16 else [])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_half_a_file(kind: str, tmp_path: Path) -> None:
    whole = save(patches(0, (300, 200)), tmp_path / "whole", kind).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[: len(whole) // 2])
    assert kinds(look(cut)) == ["broken" if kind == "WEBP" else "truncated"]
    cut.write_bytes(whole[:20])
    assert kinds(look(cut)) == ["broken"]
    cut.write_bytes(whole)
    assert look(cut).problems == []
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"text", "it is in no"), (None, "No such file")],
)
def test_no_image(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    ((kind, detail),) = look(path).problems
    assert kind == "broken"
    assert detail.startswith(reason)


def test_a_pipe_and_a_folder_do_not_stop_the_check(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.png")
    assert look(tmp_path / "a.png").problems == [("broken", "it is not a regular file")]
    assert look(tmp_path).problems == [("broken", "it is a folder")]


def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(patches(0), tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it is decoded"))
    for width, height in ((60_000, 60_000), (10_001, 5_000)):
        path.write_bytes(with_size(path.read_bytes(), width, height))
        assert look(path).problems == [("gigantic", f"{width:,} × {height:,} pixels")]


def test_limits(tmp_path: Path) -> None:
    path = save(patches(0, (40, 20)), tmp_path / "a.png")
    assert look(path, max_pixels=800, min_size=20).problems == []
    assert kinds(look(path, max_pixels=799)) == ["gigantic"]
    assert kinds(look(path, min_size=21)) == ["tiny"]
    assert look(save(patches(0, (160, 20)), path)).problems == []
    assert look(save(patches(0, (161, 20)), path)).problems == [("elongated", "161 × 20 pixels, 8 to 1")]


def test_a_single_colour(tmp_path: Path) -> None:
    assert look(save(Image.new("RGB", (20, 20), "#1020ff"), tmp_path / "a.png")).problems == [
        ("single_colour", "#1020ff")
    ]
    almost = Image.new("RGB", (20, 20), "white")
    almost.putpixel((3, 4), (255, 255, 254))
    assert look(save(almost, tmp_path / "a.png")).problems == []


def test_equal_pixels_have_equal_digests(tmp_path: Path) -> None:
    def digest(image: Image.Image, name: str, **options: object) -> bytes:
        found = look(save(image, tmp_path / name, **options)).fingerprint
        assert found is not None
        return found.digest

    image = patches(0)
    first = digest(image, "a.png")
    assert digest(image, "b.bmp") == first
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert digest(turned, "c.png", exif=exif) == first, "the upright image counts"
    image.putpixel((0, 0), (1, 2, 3))
    assert digest(image, "d.png") != first
    flat = [digest(Image.new("RGB", size), "e.png") for size in ((20, 10), (10, 20))]
    assert flat[0] != flat[1], "the size counts"


def test_an_error_of_a_source_is_a_finding() -> None:
    class Odd(ImageSource):
        def image(self, index: int, need: object = None) -> Image.Image:
            raise KeyError("what is this")

        def name(self, index: int) -> str:
            return "odd"

    found = inspect_image(ImageReader([Odd(["a", "b"], [0])], Limits()), 0)
    assert found.problems == [("broken", "'what is this'")]


def test_file_gives_what_is_decoded(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            save(patches(number), tmp_path / name / f"{number}.png")
    source = opened(tmp_path, split="all")
    assert [source.file(index) for index in range(4)] == [Path(source.name(index)) for index in range(4)]
    assert SubsetSource(source, [2]).file(0) == tmp_path / "b/0.png"

    content = [(tmp_path / "a" / f"{number}.png").read_bytes() for number in (0, 1)]
    pq.write_table(pa.table({"image": content * 2, "label": ["a", "b"] * 2}), tmp_path / "set.parquet")
    rows = opened(tmp_path / "set.parquet", split="all")
    assert [rows.file(index) for index in range(4)] == content * 2
    assert opened("digits", split="all").file(0) is None
    assert source.image(0).size == (96, 72), "nothing is left behind"


def test_place_and_name() -> None:
    digits = [opened("digits", split=split) for split in ("train", "val")]
    reader = ImageReader(digits, Limits())
    assert len(reader) == 1797
    first = len(digits[0])
    places = [reader.place(number) for number in (0, first - 1, first, 1796)]
    assert places == [(0, 0), (0, first - 1), (1, 0), (1, 1796 - first)]
    assert inspect_image(reader, 0).problems == []


def test_thumbnails_of_the_page(tmp_path: Path) -> None:
    import base64

    def thumbnail(path: Path) -> Image.Image | None:
        reader = ImageReader([FileSource(["a", "b"], [path], [0])], Limits(max_pixels=100_000))
        uri = page_thumbnail(reader, 0)
        if uri is None:
            return None
        head, _, data = uri.partition(",")
        image = Image.open(BytesIO(base64.b64decode(data)))
        assert head == f"data:image/{(image.format or '').lower()};base64"
        return image

    big = save(patches(0, (300, 150)), tmp_path / "a.jpg")
    assert (found := thumbnail(big)) is not None
    assert (found.size, found.format) == ((128, 64), "JPEG")
    big.write_bytes(big.read_bytes()[:-2000])
    assert thumbnail(big) is not None, "what decodes of it"
    small = thumbnail(save(patches(0, (32, 20)), tmp_path / "b.png"))
    assert small is not None
    assert (small.size, small.format) == ((32, 20), "PNG")
    assert thumbnail(save(patches(0, (400, 300)), tmp_path / "c.png")) is None
    assert inspect.Image is Image
