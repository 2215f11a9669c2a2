"""Open image files as 8-bit RGB; needs Pillow, and NumPy for grey of more than 8 bits."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from conformer_vision.errors import UserError, one_line, reason_of
from conformer_vision.geometry import Need, reduced_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

with suppress(ImportError, OSError):  # HEIC, where the package is installed and finds its library
    import pillow_heif

    pillow_heif.register_heif_opener()
Image.init()

_NOT_OPENED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
"""Formats that Pillow only recognises, or hands to another program (EPS to Ghostscript)."""

_UNMARKED = frozenset(name for name, (_, recognises) in Image.OPEN.items() if recognises is None)
"""Formats without a mark in the file, such as TGA; damaged files of other formats may look like them."""

FORMATS = tuple(name for name in Image.ID if name not in _NOT_OPENED and name not in _UNMARKED)
"""Formats that are told by the file's content, by Pillow's names."""

_BY_SUFFIX = {
    suffix: name
    for suffix, name in Image.registered_extensions().items()
    if name in (*FORMATS, *_UNMARKED, "MPO")  # MPO opens through JPEG
}
IMAGE_EXTENSIONS = frozenset(_BY_SUFFIX)
"""Lower-case suffixes of the files that count as images in a folder: of all that Pillow decodes."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded; Pillow refuses larger ones too (2 × 1 GiB / 4 / 3 pixels)."""

_BAND_PIXELS = 1 << 22
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_ORIENTATION = 0x0112
_SUBFILE_TYPE = 254
_MOST_FRAMES = 1000  # of a TIFF: each takes a tenth of a millisecond to find
_UPRIGHT = {  # by EXIF orientation: how to turn the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_REDUCIBLE = ("JPEG", "MPO")  # cameras write JPEGs of several images as MPO


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
    need: Need | None = None,
) -> Image.Image:
    """Decode an image to upright 8-bit RGB (H × W × 3).

    The formats are all that Pillow decodes, and HEIC where ``pillow-heif`` is installed; the first of
    several frames is read. The EXIF orientation is applied; alpha and transparent palette entries are
    composited on white. Grey of 16 bits is divided by 257, and so are 32-bit integers within 0..65535.
    Floats within 0..1 are multiplied by 255, floats within 0..255 are rounded. Integers and floats beyond
    these ranges are stretched from the image's minimum and maximum to 0..255. A TIFF of several pages,
    or of a layout that Pillow decodes to other values, is refused.

    Args:
        source: path, the file's bytes, or a binary file open for reading.
        name: what an error calls the image; by default the path. Its suffix tells the few formats
            that have no mark in the file, such as TGA.
        max_pixels: most pixels (height × width) to decode, judged by the header; `MAX_PIXELS` at most.
        need: says what will be kept of the upright image. A JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size where that is enough (`Kept.reduction`), in a fraction of the time. It is not called for
            other formats, which are decoded in full; what it raises is passed on.

    Raises:
        BrokenImageError: the image cannot be decoded, for whatever reason.
        ReadingError: no more files can be opened.
    """
    label = name or _name_of(source)
    with _named(label, source):
        image = _opened(source, formats_of(label), max_pixels)
    with image:
        if need is not None and image.format in _REDUCIBLE:
            turned = _orientation(image) in _ON_ITS_SIDE
            _reduce(image, need(image.size[::-1] if turned else image.size).reduction)
        with _named(label, source):
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            rgb = _to_rgb(image)
    del image  # frees its memory before a turned copy takes as much
    rgb.info.clear()  # what describes the stored image, as "transparency", does not describe this one
    if upright is None:
        return rgb
    with _named(label, source):
        return rgb.transpose(upright)


def check_image(source: bytes, *, name: str, max_pixels: int) -> None:
    """Refuse what `open_image` would refuse for its header, without decoding anything.

    Raises:
        BrokenImageError: It is no image, or has more pixels; the line names it.
        ReadingError: As `open_image`.
    """
    with _named(name, source), _opened(source, formats_of(name), max_pixels):
        pass


@contextmanager
def _named(name: str, source: object) -> Iterator[None]:
    """Turn whatever goes wrong inside into the error that names the image."""
    try:
        with warnings.catch_warnings():  # Pillow warns about sizes and metadata; an image is good or refused
            warnings.simplefilter("ignore")
            yield
    # Pillow's decoders raise SyntaxError, struct.error, IndexError, ... on damaged bytes.
    except Exception as error:
        label = one_line(name)
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
            raise reading_error(label, error) from error
        raise BrokenImageError(f"{label}: cannot be read as an image ({_reason(error, source)})") from error


def formats_of(name: str) -> tuple[str, ...]:
    """Return the formats that a file of that name may have."""
    unmarked = _BY_SUFFIX.get(os.path.splitext(name)[1].lower())
    return (*FORMATS, unmarked) if unmarked in _UNMARKED else FORMATS


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


def _opened(
    source: str | os.PathLike[str] | bytes | BinaryIO, formats: tuple[str, ...], max_pixels: int
) -> ImageFile.ImageFile:
    """Read the header of an image and refuse what is not to be decoded."""
    if isinstance(source, (str, os.PathLike)):
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            folder = stat.S_ISDIR(status.st_mode)
            raise _RefusedError("it is a folder" if folder else "it is not a regular file")
        if status.st_size == 0:
            raise _RefusedError("the file is empty")
    elif isinstance(source, bytes):
        if not source:
            raise _RefusedError("the file is empty")
        source = BytesIO(source)
    image = Image.open(source, formats=formats)
    try:
        width, height = image.size
        if width * height > max_pixels:
            raise _RefusedError(f"{width} × {height} pixels are more than the limit of {max_pixels}")
        if image.format == "TIFF":
            _refuse_scrambled(cast(TiffImagePlugin.TiffImageFile, image))
    except BaseException:
        image.__exit__()
        raise
    return image


def _reduce(image: ImageFile.ImageFile, by: int) -> None:
    """Let the decoder divide the edges of an image; Pillow takes the largest size that it may fall below."""
    if by > 1:
        wanted = reduced_size(image.size, by)
        image.draft(None, (image.width // by, image.height // by))
        assert image.size == wanted, f"Pillow reduced an image to {image.size}, not {wanted}"


def _refuse_scrambled(image: TiffImagePlugin.TiffImageFile) -> None:
    """Refuse TIFFs of which Pillow would return one page or wrong values, without an error."""
    pages = 0
    with suppress(EOFError):  # n_frames would go through them all, however many there are
        for frame in range(_MOST_FRAMES + 1):
            image.seek(frame)
            pages += not image.tag_v2.get(_SUBFILE_TYPE, 0) & 5  # a thumbnail or a mask is no page
        raise _RefusedError(f"it is a TIFF of more than {_MOST_FRAMES} images; save one as a file of its own")
    image.seek(0)
    if pages > 1:
        raise _RefusedError(f"it is a TIFF of {pages} pages; save each one as a file of its own")
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    kinds = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    problem = None
    if bits > 8 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == 2:
        problem = "whose channels lie one after the other"
    elif bits > 8 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        problem = "whose zero is white"
    elif bits == 8 and 2 in kinds:
        problem = "with signed values"
    elif bits == 32 and 1 in kinds:
        problem = "with unsigned values"
    elif bits > 8 and image.mode in ("F", "I") and _is_swapped(image):
        problem = "that is compressed with its bytes in reverse order"
    if problem is not None:
        raise _RefusedError(
            f"it is a TIFF of {bits} bits {problem}, which would be scrambled; save it as PNG"
        )


def _is_swapped(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Tell whether libtiff will bring the bytes into order and Pillow take them for those of the file."""
    return any(codec == "libtiff" and "B" in str(arguments) for codec, _, _, arguments in image.tile)


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


def _reason(error: Exception, source: object = None) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        if _is_heic(source):
            return "it is HEIC, which needs pillow-heif: pip install pillow-heif"
        return "it is in no format that is read, or is damaged"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return reason_of(error)


def _is_heic(source: object) -> bool:
    try:
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                head = file.read(12)
        else:
            head = source[:12] if isinstance(source, bytes) else b""
    except OSError:
        return False
    return re.match(rb".{4}ftyp(hei[cmsx]|hevc|mif1|msf1)", head, re.DOTALL) is not None
