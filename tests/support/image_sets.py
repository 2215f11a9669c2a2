"""Sets of images in tests: made, and opened with the arguments of `Splitting` in one line."""

import struct
import zlib
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conformer_vision.data import ImageSource, Splitting, open_images, require_source


def patches(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image like no other: 6 × 8 random colours, blurred into each other."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def write_folders(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (96, 72)) -> Path:
    """Folders of so many images each, called 0.png, 1.png, ...; every image of the set is different."""
    seed = count(1000)
    for name, images in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(images):
            patches(next(seed), size).save(root / name / f"{number}.png")
    return root


def with_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG with another size in its header, whose checksum fits."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def opened(
    spec: Any,
    split: Any = "all",
    *,
    classes: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    **splitting: Any,
) -> ImageSource:
    """`open_images` for sets that are no streams."""
    images = open_images(spec, split, Splitting(**splitting), classes=classes, data_dir=data_dir)
    return require_source(images, name=spec)
