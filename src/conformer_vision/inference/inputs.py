"""What a user may give to be classified, as one stream of named images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from conformer_vision.data import IMAGE_EXTENSIONS, BrokenImageError, find_images, open_image
from conformer_vision.errors import UserError, reason_of

ImageInput = str | os.PathLike[str] | bytes | Image.Image


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image still to be read, and the name under which it is answered."""

    name: str
    source: Path | bytes | Image.Image

    def open(self) -> Image.Image:
        """The image as `open_image` gives it: upright, 8-bit RGB.

        Raises:
            BrokenImageError: it cannot be read; the line names it.
        """
        if not isinstance(self.source, Image.Image):
            return open_image(self.source, name=self.name)
        try:
            file = _as_file(self.source)
        except Exception as error:  # Pillow's decoders raise anything on damaged data
            raise BrokenImageError(f"{self.name}: cannot be read as an image ({reason_of(error)})") from error
        return open_image(file, name=self.name)


def named_images(inputs: ImageInput | Iterable[ImageInput]) -> Iterator[NamedImage]:
    """The inputs in order; a folder stands for the images in it and below, in natural order.

    Files are named by their path, PIL images by their ``filename`` where they have one, and what
    has no name by its number among the inputs, from 1.

    Raises:
        UserError: a folder without images, or an input of another type.
    """
    if isinstance(inputs, (str, os.PathLike, bytes, Image.Image)):
        inputs = (inputs,)
    for number, item in enumerate(inputs, start=1):
        if isinstance(item, (bytes, bytearray, memoryview)):
            yield NamedImage(f"image {number}", bytes(item))
        elif isinstance(item, Image.Image):
            yield NamedImage(str(getattr(item, "filename", "") or f"image {number}"), item)
        elif isinstance(item, (str, os.PathLike)):
            for path in _files(Path(item)):
                yield NamedImage(str(path), path)
        else:
            raise UserError(
                f"input {number} is of type {type(item).__name__}; give paths, bytes or PIL images"
            )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]  # whether it is there is seen when it is read
    if found := find_images(path):
        return found
    raise UserError(
        f"{path} holds no images ({', '.join(sorted(IMAGE_EXTENSIONS))}); give a folder that does"
    )


def _as_file(image: Image.Image) -> BytesIO:
    """A PIL image as a lossless file, so that the rules of `open_image` hold for it too."""
    buffer = BytesIO()
    if image.mode.startswith("I") or image.mode == "F":
        image.save(buffer, "TIFF", exif=image.getexif())
    else:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        image.save(buffer, "PNG", exif=image.getexif(), compress_level=0)
    return buffer
