"""Labelled images: opening files, sources with their splits, transforms, batches.

The names below are imported when first used: `images` needs Pillow alone, the others bring torch,
timm, datasets or scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augment import AugmentConfig
    from .base import ImageSource
    from .images import IMAGE_EXTENSIONS, BrokenImageError, find_images, open_image
    from .loader import evaluation_loader, training_loader
    from .opening import open_images, require_source, write_examples
    from .splits import Splitting
    from .transforms import build_transform

_HOMES = {
    "AugmentConfig": "augment",
    "ImageSource": "base",
    "Splitting": "splits",
    "IMAGE_EXTENSIONS": "images",
    "BrokenImageError": "images",
    "find_images": "images",
    "open_image": "images",
    "evaluation_loader": "loader",
    "training_loader": "loader",
    "open_images": "opening",
    "require_source": "opening",
    "write_examples": "opening",
    "build_transform": "transforms",
}

__all__ = [
    "IMAGE_EXTENSIONS",
    "AugmentConfig",
    "BrokenImageError",
    "ImageSource",
    "Splitting",
    "build_transform",
    "evaluation_loader",
    "find_images",
    "open_image",
    "open_images",
    "require_source",
    "training_loader",
    "write_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
