"""The inputs of `predict` as one stream of named images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from conformer_vision.data import BrokenImageError, find_images, open_image
from conformer_vision.errors import UserError, reason_of, refuse_url
from conformer_vision.geometry import Need

ImageInput = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that is still to be read, and its name in the results."""

    name: str
    source: Path | bytes | Image.Image

    def open(self, need: Need | None = None) -> Image.Image:
        """Read the image with `open_image`: upright, 8-bit RGB.

        Args:
            need: As in `open_image`; without effect on a PIL image.

        Raises:
            BrokenImageError: It cannot be read; the line names it.
        """
        if not isinstance(self.source, Image.Image):
            return open_image(self.source, name=self.name, need=need)
        try:
            file = _as_file(self.source)
        except Exception as error:  # Pillow's decoders raise anything on damaged data
            raise BrokenImageError(f"{self.name}: cannot be read as an image ({reason_of(error)})") from error
        return open_image(file, name=self.name)


def named_images(inputs: ImageInput | Iterable[ImageInput]) -> Iterator[NamedImage]:
    """Yield the inputs in order; a folder yields the images in and below it, in natural order.

    Files are named by their path, PIL images by their ``filename`` if they have one, and everything else by
    its number among the inputs, from 1.

    Raises:
        UserError: A folder without images, a URL, or an input of another type.
    """
    if isinstance(inputs, (str, os.PathLike, bytes, Image.Image)):
        inputs = (inputs,)
    for number, item in enumerate(inputs, start=1):
        if isinstance(item, (bytes, bytearray, memoryview)):
            yield NamedImage(f"image {number}", bytes(item))
        elif isinstance(item, Image.Image):
            yield NamedImage(str(getattr(item, "filename", "") or f"image {number}"), item)
        elif isinstance(item, (str, os.PathLike)):
            for path in _files(item):
                yield NamedImage(str(path), path)
        else:
            raise UserError(
                f"input {number} is of type {type(item).__name__}; give paths, bytes or PIL images"
            )


def _files(item: str | os.PathLike[str]) -> list[Path]:
    path = Path(item)
    if not path.is_dir():
        refuse_url(item)
        return [path]  # a missing file is reported when it is read
    if found := find_images(path):
        return found
    raise UserError(f"{path} holds no images of a format that is read; give a folder that does")


def _as_file(image: Image.Image) -> BytesIO:
    """Write a PIL image to a lossless file, so that `open_image` treats it like any other."""
    buffer = BytesIO()
    if image.mode.startswith("I") or image.mode == "F":
        image.save(buffer, "TIFF", exif=image.getexif())
    else:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.save(buffer, "PNG", exif=image.getexif(), compress_level=0)
    return buffer
