"""Open image files as 8-bit RGB; needs Pillow, and NumPy for grey of more than 8 bits."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, UnidentifiedImageError

from conformer_vision.errors import UserError, one_line, reason_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"}
)
"""Lower-case suffixes of the files that count as images in a folder."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded; Pillow refuses larger ones too (2 × 1 GiB / 4 / 3 pixels)."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO opens through JPEG
_BAND_PIXELS = 1 << 22
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_ORIENTATION = 0x0112
_UPRIGHT = {  # by EXIF orientation: how to turn the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Pillow logs some damage before it raises; without a handler of its own that would go to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BrokenImageError(UserError):
    """An image that cannot be decoded, is too big, or is not there; the line names it."""


class ReadingError(UserError):
    """Reading failed because of the machine, not an image: no memory, descriptors or processes are left."""


class _RefusedError(Exception):
    """Why an image is not decoded; its name is added by `open_image`."""


def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode an image to upright 8-bit RGB (H × W × 3).

    The formats are JPEG, MPO, PNG, WebP, BMP, TIFF and GIF; the first of several frames is read. The EXIF
    orientation is applied; alpha and transparent palette entries are composited on white. Grey of 16 bits is
    divided by 257, and so are 32-bit integers within 0..65535. Floats within 0..1 are multiplied by
    255, floats within 0..255 are rounded. Integers and floats beyond these ranges are stretched from the
    image's minimum and maximum to 0..255.

    Args:
        source: path, the file's bytes, or a binary file open for reading.
        name: what an error calls the image; by default the path.
        max_pixels: most pixels (height × width) to decode, judged by the header; `MAX_PIXELS` at most.

    Raises:
        BrokenImageError: the image cannot be decoded, for whatever reason.
        ReadingError: no more files can be opened.
    """
    try:
        with warnings.catch_warnings():  # Pillow warns about sizes and metadata; an image is good or refused
            warnings.simplefilter("ignore")
            return _decode(source, max_pixels)
    # Pillow's decoders raise SyntaxError, struct.error, IndexError, ... on damaged bytes.
    except Exception as error:
        label = one_line(name or _name_of(source))
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
            raise reading_error(label, error) from error
        raise BrokenImageError(f"{label}: cannot be read as an image ({_reason(error)})") from error


def as_rgb(image: object, *, name: str) -> Image.Image:
    """Turn an image in memory to 8-bit RGB.

    Args:
        image: an image of PIL in any mode; an array (H, W) or (H, W, C); or a tensor (C, H, W) or (H, W).
            C is 1 or 3; values are of 8 bits, or floats from 0 to 1.
        name: what an error calls it.

    Raises:
        BrokenImageError: the image cannot be decoded.
        UserError: something else, or floats outside 0 to 1.
    """
    import numpy as np

    if isinstance(image, Image.Image):
        try:
            rgb = _to_rgb(image)
        except Exception as error:  # lazily decoded by PIL
            raise BrokenImageError(
                f"{one_line(name)}: cannot be read as an image ({_reason(error)})"
            ) from error
        rgb.info.clear()
        return rgb
    is_tensor = hasattr(image, "detach") and hasattr(image, "permute")
    if is_tensor:
        tensor: Any = image.detach().cpu()  # type: ignore[attr-defined]
        array = np.asarray(tensor.float() if tensor.is_floating_point() else tensor)  # bfloat16 too
    else:
        array = np.asarray(image)
    if is_tensor and array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] != 3) or not array.size:
        raise UserError(
            f"{name}: {type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))} is not an image; "
            "give an image of PIL, an array (H, W, C) or a tensor (C, H, W), of 1 or 3 channels"
        )
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{name}: its floats are not from 0 to 1; give images before normalisation")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"{name}: its values are {array.dtype}; give 8 bits, or floats from 0 to 1")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _decode(source: str | os.PathLike[str] | bytes | BinaryIO, max_pixels: int) -> Image.Image:
    if isinstance(source, (str, os.PathLike)):
        mode = os.stat(source).st_mode
        if not stat.S_ISREG(mode):  # reading a pipe would wait for ever
            raise _RefusedError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")
        if os.stat(source).st_size == 0:
            raise _RefusedError("the file is empty")
    elif isinstance(source, bytes):
        if not source:
            raise _RefusedError("the file is empty")
        source = BytesIO(source)
    with Image.open(source, formats=_FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _RefusedError(f"{width} × {height} pixels are more than the limit of {max_pixels}")
        image.load()
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image)
    del image  # frees its memory before a turned copy takes as much
    rgb.info.clear()  # what describes the stored image, as "transparency", does not describe this one
    return rgb if upright is None else rgb.transpose(upright)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    convert = _converter(image)
    bands = _bands(image)
    if len(bands) == 1:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for box in bands:
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return boxes of whole rows that cover the image: copies of a whole large one would take gigabytes."""
    rows = max(_BAND_PIXELS // image.width, 1)
    return [
        (0, top, image.width, min(top + rows, image.height)) for top in range(0, max(image.height, 1), rows)
    ]


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the function that turns any rows of the image to RGB."""
    if image.mode == "F" or image.mode.startswith("I"):  # I, I;16, I;16B, ...
        return _deep_grey_converter(image)
    if image.has_transparency_data:
        return _on_white
    return lambda band: band.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _deep_grey_converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    import numpy as np

    if np.asarray(image.crop((0, 0, 1, 1))).dtype.itemsize == 2:
        return lambda band: Image.fromarray(_divided_by_257(np.asarray(band))).convert("RGB")
    low, high = np.inf, -np.inf
    for box in _bands(image):
        values = np.asarray(image.crop(box)).astype(np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise _RefusedError("it holds no finite number")

    def convert(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        if image.mode != "F" and low >= 0 and high <= 65535:
            return Image.fromarray(_divided_by_257(values)).convert("RGB")
        if low >= 0 and high <= 1:
            values = values * 255
        elif low < 0 or high > 255:
            values = (values - low) * (255 / max(high - low, 1e-30))
        return Image.fromarray(np.rint(values).astype(np.uint8)).convert("RGB")

    return convert


def _divided_by_257(values: NDArray[Any]) -> NDArray[Any]:
    return ((values.astype("uint32") + 128) // 257).astype("uint8")


def reading_error(what: str, error: BaseException) -> ReadingError:
    """Return the error that says in one line why something could not be read."""
    return ReadingError(f"{what} cannot be read: {machine_reason(error)}")


def machine_reason(error: BaseException) -> str:
    """Return what the machine lacks, in a few words."""
    reason = reason_of(error)
    # "ancdata" is how Python calls a descriptor that did not come.
    if getattr(error, "errno", None) in _NO_DESCRIPTORS or "ancdata" in reason:
        return "too many open files; raise the limit (ulimit -n)"
    return reason


def _name_of(source: object) -> str:
    name = source if isinstance(source, (str, os.PathLike)) else getattr(source, "name", None)
    return os.fspath(name) if isinstance(name, (str, os.PathLike)) else "image"


def _reason(error: Exception) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}, or is damaged"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return reason_of(error)


def natural_key(name: str) -> tuple[tuple[str | int, ...], str]:
    """Return a sort key that puts "img2" before "img10" and ignores case; equal only for equal names."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Find the images in and below a folder, by suffix, in natural order of their paths.

    Hidden files and folders are left out. Links to folders are followed, each folder once and
    none upwards, so a loop of links ends.

    Raises:
        UserError: a folder that cannot be read.
    """
    found: list[Path] = []
    # A link up to a parent would bring in what lies beside the folder, so parents count as seen.
    seen = {str(path) for path in Path(os.path.realpath(folder)).parents}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # In sorted order, so that of two ways to one folder every machine takes the same.
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=natural_key)
        found.extend(Path(parent, name) for name in files if is_image_name(name))
    return sorted(found, key=lambda path: natural_key(str(path)))


def is_image_name(name: str) -> bool:
    """Tell whether a file name has the suffix of an image and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror or error}") from error
