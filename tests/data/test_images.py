import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conformer_vision.data.find import find_images, natural_key
from conformer_vision.data.images import IMAGE_EXTENSIONS, BrokenImageError, open_image
from conformer_vision.errors import UserError


def _gradient(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[0:24, 0:32]
    rgb = Image.fromarray(np.stack([y * 10, x * 7, 255 - x * 7], axis=-1).astype(np.uint8))
    return rgb.convert(mode)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> Any:
    image = open_image(data)
    assert image.mode == "RGB"
    return image.getpixel(at)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(kind: str) -> None:
    assert np.array_equal(open_image(_encode(_gradient(), kind)), _gradient())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))], "quality": 95}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("GIF", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))]}),
        ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (32, 24))], "lossless": True}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_formats_and_first_frames(kind: str, options: dict[str, Any]) -> None:
    image = open_image(_encode(_gradient(), kind, **options))
    assert (image.mode, image.size) == ("RGB", (32, 24))
    assert np.abs(np.asarray(image, int) - np.asarray(_gradient(), int)).mean() < 8


def test_sources_path_bytes_and_file(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(_encode(_gradient(), "PNG"))
    with path.open("rb") as file:
        opened = [open_image(path), open_image(str(path)), open_image(path.read_bytes()), open_image(file)]
    assert all(np.array_equal(image, _gradient()) for image in opened)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    upright = np.asarray(_gradient())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # turning the stored image clockwise makes it upright
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = open_image(_encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, quality=100))
    assert image.size == (32, 24)
    assert np.abs(np.asarray(image, int) - upright).mean() < 4


def test_damaged_exif_does_not_matter() -> None:
    data = _encode(_gradient(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.array_equal(open_image(data), _gradient())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("LA", (4, 4), (77, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (77, 255)), (77, 77, 77)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("I;16", (4, 4), 257 * 100), (100, 100, 100)),
        (Image.new("I;16", (4, 4), 65535), (255, 255, 255)),
        (Image.new("P", (4, 4), 0), (0, 0, 0)),
    ],
)
def test_png_modes(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert _pixel(_encode(image, "PNG")) == expected


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),  # 0..1
        ("F", [0.0, 100.4, 200.0], [0, 100, 200]),  # 0..255
        ("F", [-1.0, 0.0, 3.0], [0, 64, 255]),  # stretched
        ("F", [float("nan"), 0.0, float("inf")], [0, 0, 0]),
        ("F", [7e37, 7e37, 7e37], [0, 0, 0]),
        ("I", [0, 257, 65535], [0, 1, 255]),  # 16 bits in 32
        ("I", [0, 500_000, 1_000_000], [0, 128, 255]),
        ("I", [-100, 0, 300], [0, 64, 255]),
    ],
)
def test_float_and_integer_tiff(mode: str, values: list[float], expected: list[int]) -> None:
    array = np.array([values], np.float32 if mode == "F" else np.int32)
    image = open_image(_encode(Image.fromarray(array), "TIFF"))
    assert np.asarray(image)[0, :, 0].tolist() == expected
    assert np.ptp(np.asarray(image), axis=2).max() == 0


def test_a_tiff_of_very_many_images_is_not_searched_to_its_end() -> None:
    """Each has no more than a few tags, and calls itself a thumbnail; 300,000 would take half a minute."""
    import struct

    tags = b"".join(
        struct.pack("<HHII", *tag)
        for tag in [
            (254, 4, 1, 1),
            (256, 4, 1, 1),
            (257, 4, 1, 1),
            (258, 3, 1, 8),
            (262, 3, 1, 1),
            (273, 4, 1, 8),
        ]
    )
    size = 2 + len(tags) + 4
    places = range(8 + size, 8 + 300_000 * size, size)
    data = b"II*\0" + struct.pack("<I", 8) + b"".join(b"\6\0" + tags + struct.pack("<I", at) for at in places)
    with pytest.raises(
        BrokenImageError, match="a TIFF of more than 1000 images; save one as a file of its own"
    ):
        open_image(data, name="many.tif")


def test_float_tiff_without_a_number_is_refused() -> None:
    data = _encode(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF")
    with pytest.raises(BrokenImageError, match="no finite number"):
        open_image(data)


def test_16_bit_big_endian_tiff() -> None:
    little = _encode(Image.new("I;16", (4, 4), 257 * 3), "TIFF")
    big = _encode(Image.new("I;16B", (4, 4), 257 * 3), "TIFF")
    assert _pixel(little) == _pixel(big) == (3, 3, 3)


def _png(bit_depth: int, colour_type: int, row: bytes, *, extra: bytes = b"") -> bytes:
    """A PNG of 1 × 1 pixel, for what Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, bit_depth, colour_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def test_16_bit_colour_png() -> None:
    rgb = _png(16, 2, np.array([257 * 10, 257 * 200, 65535], ">u2").tobytes())
    assert _pixel(rgb) == (10, 200, 255)
    rgba = _png(16, 6, np.array([0, 0, 0, 0], ">u2").tobytes())
    assert _pixel(rgba) == (255, 255, 255)


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    for kind in ("PNG", "GIF"):
        assert _pixel(_encode(image, kind)) == (40, 50, 60)
        assert _pixel(_encode(image, kind, transparency=1)) == (255, 255, 255)
    assert _pixel(_encode(image, "PNG", transparency=bytes([255, 51]))) == (212, 214, 216)


def test_transparent_colour_of_rgb_png_is_white() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert _pixel(_encode(image, "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


def test_cmyk_jpeg_and_tiff() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = _pixel(_encode(image, kind))
        assert red > 240
        assert max(green, blue) < 15


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image, but text\n", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (_encode(_gradient(), "JPEG")[:300], "[Tt]runcated|damaged"),
        (_encode(_gradient(), "PNG")[:-30], "[Tt]runcated"),
        (_encode(_gradient(), "TIFF")[:200], "cannot be read"),
        (_encode(_gradient(), "WEBP")[:100], "cannot be read"),
        (_encode(_gradient(), "GIF")[:100], "cannot be read"),
    ],
)
def test_broken_files_are_one_line_with_the_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "some.jpg"
    path.write_bytes(content)
    with pytest.raises(BrokenImageError, match=reason) as caught:
        open_image(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    with pytest.raises(BrokenImageError, match=r"^row 7: "):
        open_image(content, name="row 7")


def test_no_file_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match=r"none\.png.*no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(BrokenImageError, match="it is a folder"):
        open_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BrokenImageError, match="not a regular file"):
        open_image(tmp_path / "pipe.png")


def test_name_is_made_printable(tmp_path: Path) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/\xff two\nlines.png")
    with pytest.raises(BrokenImageError) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


WRITTEN = set(Image.SAVE) & set(Image.OPEN) - {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}


@pytest.mark.parametrize("kind", sorted(WRITTEN))
def test_every_format_that_pillow_writes_is_read(kind: str, tmp_path: Path) -> None:
    """By a suffix of the format's own, and from a folder."""
    mode = {"XBM": "1", "MSP": "1", "SPIDER": "F", "BLP": "P"}.get(kind, "RGB")
    suffixes = {name: suffix for suffix, name in sorted(Image.registered_extensions().items())}
    image = _gradient().resize((32, 32)).convert(mode)
    image.save(tmp_path / f"image{suffixes.get(kind, '.spi').upper()}", kind)
    found = find_images(tmp_path)
    if kind == "SPIDER":  # has neither suffix nor mark of its own
        assert found == []
        return
    read = open_image(found[0])
    assert read.mode == "RGB"
    wanted = np.asarray(image.convert("RGB").resize(read.size), int)
    assert np.abs(np.asarray(read, int) - wanted).mean() < 12


def test_formats_that_would_run_a_program_are_not_opened(tmp_path: Path) -> None:
    _gradient().save(tmp_path / "image.eps")
    with pytest.raises(BrokenImageError, match=r"image\.eps: cannot be read as an image \(it is in no"):
        open_image(tmp_path / "image.eps")
    assert find_images(tmp_path) == []


def test_formats_without_a_mark_are_told_by_the_suffix() -> None:
    data = _encode(_gradient(), "TGA")
    assert np.array_equal(open_image(data, name="set.tar/image.tga"), _gradient())
    with pytest.raises(BrokenImageError, match="in no format"):
        open_image(data, name="image.png")


def test_heic_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(BrokenImageError, match=r"photo\.jpg: .*(pip install pillow-heif|damaged)"):
        open_image(tmp_path / "photo.jpg")


def test_too_many_pixels_are_refused_before_decoding() -> None:
    data = _encode(_gradient(), "PNG")
    assert open_image(data, max_pixels=32 * 24).size == (32, 24)
    with pytest.raises(BrokenImageError, match="32 × 24 pixels are more than the limit of 767"):
        open_image(data[:60], max_pixels=32 * 24 - 1)  # the header alone: pixels are not looked at


def test_bombs_are_refused_without_warning() -> None:
    huge = _encode(Image.new("1", (1, 1)), "BMP")
    for side in (12_000, 30_000):  # Pillow would warn of the first, and refuses the second
        size = side.to_bytes(4, "little")
        data = huge[:18] + size + size + huge[26:]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(BrokenImageError):
                open_image(data)


def _samples() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        _encode(_gradient(), "JPEG", exif=exif),
        _encode(_gradient("CMYK"), "JPEG", progressive=True),
        _encode(_gradient("RGBA"), "PNG", exif=exif),
        _encode(_gradient("P"), "PNG", transparency=3),
        _encode(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
        _encode(_gradient(), "WEBP", exif=exif),
        _encode(_gradient("RGBA"), "WEBP", lossless=True),
        _encode(_gradient("1"), "BMP"),
        _encode(_gradient(), "TIFF", compression="tiff_lzw", exif=exif),
        _encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
        _encode(_gradient("L"), "TIFF", compression="jpeg"),
        _encode(_gradient(), "GIF", save_all=True, append_images=[_gradient("L")]),
        _encode(_gradient(), "MPO", save_all=True, append_images=[_gradient()]),
    ]


SAMPLES = _samples()


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for _ in range(draw(st.integers(1, 6))):
        # Headers are short and at the front; without the bias most changes would hit pixels.
        end = draw(st.sampled_from([64, 256, len(data)]))
        at = draw(st.integers(0, max(min(end, len(data)) - 1, 0)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "delete"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)


def _opens_or_is_refused(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = open_image(data, name="some image", max_pixels=1_000_000)
        except BrokenImageError as error:
            assert str(error).startswith("some image: ")
            assert len(str(error).splitlines()) == 1
        else:
            assert image.mode == "RGB"
            assert image.tobytes()


@given(_damaged())
@settings(max_examples=1500, deadline=2000)
def test_damaged_images_open_or_are_refused(data: bytes) -> None:
    _opens_or_is_refused(data)


@given(st.binary(max_size=200))
def test_any_bytes_open_or_are_refused(data: bytes) -> None:
    _opens_or_is_refused(data)


def test_find_images(tmp_path: Path) -> None:
    wanted = ["a/2.PNG", "a/10.jpeg", "a/b/c/1.tiff", "z.webp"]
    ignored = ["a/.hidden.png", ".git/1.png", "a/notes.txt", "a/noext"]
    for name in wanted + ignored:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "beside.png").touch()
    (tmp_path / "root" / "a" / "loop").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "root" / "folder.png").mkdir()
    found = find_images(tmp_path / "root")
    assert [str(path.relative_to(tmp_path / "root")) for path in found] == wanted


def test_find_images_follows_links_to_folders_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "same").symlink_to(tmp_path / "elsewhere")
    assert find_images(tmp_path / "root") == [tmp_path / "root" / "link" / "1.png"]


def test_find_images_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        find_images(tmp_path / "gone")


def test_extensions_are_lower_case() -> None:
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_EXTENSIONS)


@given(st.lists(st.text(max_size=8), max_size=8))
def test_natural_key_is_a_total_order(names: list[str]) -> None:
    assert sorted(sorted(names), key=natural_key) == sorted(sorted(names, reverse=True), key=natural_key)


def test_natural_order_of_numbers() -> None:
    assert sorted(["b10", "B9", "a1", "²", "10", "9"], key=natural_key) == ["9", "10", "a1", "B9", "b10", "²"]
