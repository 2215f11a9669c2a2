"""Made photos as JPEG files."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from conformer_vision.geometry import Size


def photo(size: Size, mode: str = "RGB", *, seed: int = 0) -> Image.Image:
    """Smooth noise, which JPEG keeps and which has something to resize everywhere."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(size[1] // 24, 1), max(size[0] // 24, 1), 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode)


def jpeg(image: Image.Image, *, orientation: int = 1, kind: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = BytesIO()
    image.save(buffer, kind, exif=exif, quality=90, **options)
    return buffer.getvalue()
