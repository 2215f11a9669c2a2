"""Opening image sets in tests, with the arguments of `Splitting` in one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conformer_vision.data import ImageSource, Splitting, open_images, require_source


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
