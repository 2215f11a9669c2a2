"""Inspect one image: its problems, and its fingerprints for finding copies. Runs in the reading processes."""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, cast

from PIL import Image, ImageFile

from conformer_vision.data.base import ImageSource
from conformer_vision.data.images import BrokenImageError, formats_of, open_image
from conformer_vision.errors import reason_of
from conformer_vision.pages import data_uri

THUMBNAIL_EDGE = 16
"""Edge, in pixels, of the grey thumbnail that verifies near duplicates."""

_SAME = {"MPO": "JPEG"}  # phones write it into .jpg files
_MOST_ELONGATED = 8.0
_DIM = 66
"""Values of 14 bits in 16 stay below it, seen in 8."""
_PAGE_EDGE = 128
"""Longest edge, in pixels, of the thumbnails on the page."""


@dataclass(frozen=True)
class Limits:
    """When an image is tiny, and when it is gigantic."""

    min_size: int = 8
    """Pixels of the short edge below which an image is tiny."""
    max_pixels: int = 50_000_000
    """Pixels (height × width) above which an image is not decoded."""


class Fingerprint(NamedTuple):
    """What finds the copies of an image."""

    digest: bytes
    """16 bytes, equal for equal upright RGB pixels."""
    perceptual_hash: int
    """64 bits, close for images that look alike."""
    thumbnail: bytes
    """16 × 16 grey values, row by row."""


class Inspection(NamedTuple):
    """The result for one image."""

    problems: Sequence[tuple[str, str]]
    """Kind and detail of each finding."""
    fingerprint: Fingerprint | None = None
    """None if the image was not decoded."""


class ImageReader:
    """Number the images of several sources: first those of the first source, then of the second, ...

    Args:
        sources: one per split.
        limits: when an image is tiny or gigantic.
    """

    def __init__(self, sources: Sequence[ImageSource], limits: Limits) -> None:
        self.sources = tuple(sources)
        self.limits = limits
        self._starts = list(accumulate((len(source) for source in self.sources), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def place(self, number: int) -> tuple[int, int]:
        """Return the numbers of the source and of the image in it."""
        source = bisect_right(self._starts, number) - 1
        return source, number - self._starts[source]


class _Header(NamedTuple):
    size: tuple[int, int]
    kind: str
    """Format by Pillow's name."""
    animated: bool
    deep: bool
    """Whether values are stored in 16 bits."""


def inspect_image(reader: ImageReader, number: int) -> Inspection:
    """Read one image; any problem is a finding, not an error."""
    part, index = reader.place(number)
    source, limits = reader.sources[part], reader.limits
    file: Path | bytes | None = None
    # No image may end the check, whatever a source or decoder raises.
    try:
        file = source.file(index)
        header = None if file is None else _read_header(file, formats_of(source.name(index)))
        if header is not None and _too_large(header.size, limits):
            return Inspection([("gigantic", _size(header.size))])
        image = _decode(source, index, file, limits.max_pixels)
    except Exception as error:
        is_cut = file is not None and _decodes_in_part(file, source.name(index), limits)
        kind = "truncated" if is_cut else "broken"
        return Inspection([(kind, _reason(error))])
    if _too_large(image.size, limits):  # from a source without headers
        return Inspection([("gigantic", _size(image.size))])
    problems = [] if header is None else _header_problems(header, source.name(index))
    is_deep = header is not None and header.deep
    return Inspection(problems + _pixel_problems(image, limits, is_deep=is_deep), _fingerprint(image))


def page_thumbnail(reader: ImageReader, number: int) -> str | None:
    """Return a small copy as a ``data:`` URI: of a truncated image what decodes, None if nothing does."""
    part, index = reader.place(number)
    source = reader.sources[part]
    try:
        with _pillow(load_truncated=True):
            image = _decode(source, index, source.file(index), reader.limits.max_pixels)
        return data_uri(image, edge=_PAGE_EDGE)
    except Exception:
        return None


def _decode(source: ImageSource, index: int, file: Path | bytes | None, max_pixels: int) -> Image.Image:
    if file is None:
        return source.image(index)
    suffix = os.path.splitext(source.name(index))[1]
    return open_image(file, name=f"it{suffix}", max_pixels=max_pixels)


def _read_header(file: Path | bytes, formats: tuple[str, ...]) -> _Header | None:
    """Read size and format without decoding; None if that fails."""
    if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
        return None  # opening a pipe would wait for ever
    try:
        with (
            _pillow(load_truncated=False),
            Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=formats) as image,
        ):
            kind = image.format or ""
            animated = kind != "MPO" and bool(getattr(image, "is_animated", False))
            stored = f"{image.mode} {[tile[3] for tile in getattr(image, 'tile', ())]}"
            return _Header(image.size, kind, animated, deep=";16" in stored)
    except Exception:  # decoding says why
        return None


@contextmanager
def _pillow(*, load_truncated: bool) -> Iterator[None]:
    """Lift Pillow's limit of pixels, which `Limits` replaces; accept truncated images or not."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = None, load_truncated
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


def _decodes_in_part(file: Path | bytes, name: str, limits: Limits) -> bool:
    """Tell whether an image decodes up to where its data ends or is damaged."""
    try:
        with _pillow(load_truncated=True):
            open_image(file, name=name, max_pixels=limits.max_pixels)
    except Exception:
        return False
    return True


def _reason(error: Exception) -> str:
    text = reason_of(error)
    if isinstance(error, BrokenImageError):
        _, found, reason = text.partition(" cannot be read as an image (")
        return reason.removesuffix(")") if found else text
    return text


def _header_problems(header: _Header, name: str) -> list[tuple[str, str]]:
    problems = []
    suffix = os.path.splitext(name)[1].lower()
    named = Image.registered_extensions().get(suffix, header.kind)
    if _SAME.get(named, named) != _SAME.get(header.kind, header.kind):
        problems.append(("extension", f"named {suffix}, is {header.kind}"))
    if header.animated:
        problems.append(("several_frames", f"{header.kind} of several frames"))
    return problems


def _pixel_problems(image: Image.Image, limits: Limits, *, is_deep: bool) -> list[tuple[str, str]]:
    problems = []
    short, long = sorted(image.size)
    if short < limits.min_size:
        problems.append(("tiny", _size(image.size)))
    if long > _MOST_ELONGATED * short:
        problems.append(("elongated", f"{_size(image.size)}, {long / short:.0f} to 1"))
    colours = image.getcolors(maxcolors=1)  # None where there are more
    if colours is not None:
        problems.append(("single_colour", f"#{bytes(cast(tuple[int, ...], colours[0][1])).hex()}"))
    elif is_deep and (brightest := max(high for _, high in image.getextrema())) < _DIM:  # type: ignore[misc]
        problems.append(("low_range", f"16 bits, no value above about {brightest * 257 + 128:,} of 65,535"))
    return problems


def _fingerprint(image: Image.Image) -> Fingerprint:
    import imagehash
    import numpy as np

    size = f"{image.width} {image.height} ".encode()
    digest = hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
    grey = image.convert("L")
    shrink = min(grey.size) // 128
    if shrink > 1:  # the hash uses 8 × 8 frequencies of 32 × 32 pixels
        grey = grey.reduce(shrink)
    bits = np.packbits(imagehash.phash(grey).hash)
    thumbnail = grey.resize((THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.BOX)
    return Fingerprint(digest, int.from_bytes(bits.tobytes(), "big"), thumbnail.tobytes())


def _too_large(size: tuple[int, int], limits: Limits) -> bool:
    return size[0] * size[1] > limits.max_pixels


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]:,} × {size[1]:,} pixels"
