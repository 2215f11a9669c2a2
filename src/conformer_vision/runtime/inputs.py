"""The images that users hand over, of every kind, as one stream of named images."""

from __future__ import annotations

import io
import os
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.data import BrokenImageError, find_images, open_image
from conformer_vision.errors import UserError, reason_of, refuse_url
from conformer_vision.geometry import Need


class BinaryFile(Protocol):
    """What is read like a file opened with ``"rb"``."""

    def read(self) -> bytes:
        """Return everything up to the end."""
        ...


ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8]
)
"""The path or the bytes of a file, a file opened with ``"rb"``, an image of PIL, or an array of 8-bit values
(H, W) or (H, W, C) in RGB order, C being 1, 3 or, with transparency, 4."""

_KINDS = "paths, bytes, files opened with 'rb', PIL images or arrays (H, W, C) of 8 bits"


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that is still to be read, and its name in the results."""

    name: str
    source: Path | bytes | bytearray | memoryview | BinaryFile | Image.Image

    def held(self, *, compress: bool = False) -> NamedImage:
        """Return the image as it is now, whatever the caller does next with its object.

        A file is read, from its start where it can be rewound, as `PIL.Image.open` does it. It stays open.

        Args:
            compress: Make PIL images smaller, without loss, to send them somewhere.

        Raises:
            BrokenImageError: It cannot be read; the line names it.
            UserError: It is not a file opened with ``"rb"``.
        """
        if isinstance(self.source, (Path, bytes)):
            return self
        try:
            if isinstance(self.source, Image.Image):
                return replace(self, source=_as_file(self.source, compress_level=6 if compress else 0))
            if isinstance(self.source, (bytearray, memoryview)):
                return replace(self, source=bytes(self.source))
            content: Any = _content(self.source)
        except Exception as error:  # Pillow's decoders raise anything on damaged data, and so do files
            raise BrokenImageError(f"{self.name}: cannot be read as an image ({reason_of(error)})") from error
        if isinstance(content, Awaitable):
            getattr(content, "close", lambda: None)()  # or Python warns that nobody waited for it
            raise UserError(f"{self.name} is read asynchronously; give the bytes that its read() returns")
        if not isinstance(content, (bytes, bytearray, memoryview)):
            kind = type(content).__name__
            raise UserError(f"{self.name} is a file whose read() returns {kind}; open it with 'rb'")
        return replace(self, source=bytes(content))

    def open(self, need: Need | None = None) -> Image.Image:
        """Read the image with `open_image`: upright, 8-bit RGB.

        Args:
            need: As in `open_image`; without effect on a PIL image or an array.

        Raises:
            BrokenImageError: It cannot be read; the line names it.
            UserError: As `held`.
        """
        source = self.held().source
        assert isinstance(source, (Path, bytes))
        return open_image(source, name=self.name, need=need)


def as_several(inputs: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """Return what is not one image, or one folder of images, as it is, and anything else in a tuple."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    one: bool = isinstance(inputs, kinds) or _is_file(inputs) or not isinstance(inputs, Iterable)
    if isinstance(inputs, np.ndarray):
        one = inputs.dtype.kind not in "OU"  # arrays of paths, as from a table
    return cast("Iterable[ImageInput]", (inputs,) if one else inputs)


def named_images(inputs: ImageInput | Iterable[ImageInput]) -> Iterator[NamedImage]:
    """Yield the inputs in order; a folder yields the images in and below it, in natural order.

    Files are named by their path, PIL images by their ``filename`` if they have one, and everything else by
    its number among the inputs, from 1. Files that are open are not read yet.

    Raises:
        UserError: A folder without images, a URL, an input of another type, or an array that is no image.
    """
    for number, item in enumerate(as_several(inputs), start=1):
        name = f"image {number}"
        if isinstance(item, (bytes, bytearray, memoryview)):
            yield NamedImage(name, item)
        elif isinstance(item, Image.Image):
            yield NamedImage(str(getattr(item, "filename", "") or name), item)
        elif isinstance(item, (str, os.PathLike)):
            for path in _files(item):
                yield NamedImage(str(path), path)
        elif isinstance(item, np.ndarray):
            yield NamedImage(name, _from_array(item, f"input {number}"))
        elif _is_file(item):
            yield NamedImage(_name_of(item, number) or name, item)
        else:
            raise UserError(f"input {number} is of type {type(item).__name__}; give {_KINDS}")


def _files(item: str | os.PathLike[str]) -> list[Path]:
    path = Path(item)
    if not path.is_dir():
        refuse_url(item)
        return [path]  # a missing file is reported when it is read
    if found := find_images(path):
        return found
    raise UserError(f"{path} holds no images of a format that is read; give a folder that does")


def _from_array(array: NDArray[Any], label: str) -> Image.Image:
    """Return an array as an image; the caller may change the array afterwards."""
    what = f"{label} is an array of {array.dtype} of shape {array.shape}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8:
        raise UserError(f"{what}; give 8-bit values (uint8) from 0 to 255, in RGB order")
    if array.ndim == 4:
        raise UserError(f"{what}; give several images as a list, such as list(array)")
    if array.ndim == 3 and channels not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise UserError(f"{what}, with its channels first; give (H, W, C), as by np.moveaxis(array, 0, -1)")
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UserError(f"{what}; give (H, W), or (H, W, C) of 1, 3 or 4 channels")
    return Image.fromarray(np.array(array[..., 0] if array.ndim == 3 and channels == 1 else array))


def _is_file(item: object) -> TypeGuard[BinaryFile]:
    """Tell whether something is read like a file; some files hand all attributes on to another one."""
    return callable(getattr(item, "read", None))


def _name_of(file: Any, number: int) -> str | None:
    """Return the name of an open file; not all of them have one."""
    if isinstance(file, io.TextIOBase):
        raise UserError(f"input {number} is a file opened as text; open it with 'rb'")
    name = getattr(file, "name", None)
    return name if isinstance(name, str) else None


def _content(file: BinaryFile) -> object:
    """Return what an open file holds, from its start if it has one to go back to."""
    with suppress(AttributeError, OSError):  # a pipe, or whatever else cannot be rewound
        file.seek(0)  # type: ignore[attr-defined]
    return file.read()


def _as_file(image: Image.Image, *, compress_level: int) -> bytes:
    """Write a PIL image to a lossless file, so that `open_image` treats it like any other."""
    buffer = io.BytesIO()
    if image.mode.startswith("I") or image.mode == "F":
        image.save(buffer, "TIFF", exif=image.getexif())
    else:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.save(buffer, "PNG", exif=image.getexif(), compress_level=compress_level)
    return buffer.getvalue()
