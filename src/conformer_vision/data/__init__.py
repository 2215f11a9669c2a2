"""Labelled images: opening files, sources with their splits, transforms, batches.

The names below are imported when first used: `images` needs Pillow alone, the others bring torch,
timm, datasets or scikit-learn.
"""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .augment import AugmentConfig as AugmentConfig
    from .base import ImageSource as ImageSource
    from .base import Label as Label
    from .base import class_counts as class_counts
    from .base import fingerprint as fingerprint
    from .base import multi_hot as multi_hot
    from .datamodule import ImageDataModule as ImageDataModule
    from .find import find_images as find_images
    from .images import BrokenImageError as BrokenImageError
    from .images import open_image as open_image
    from .loader import evaluation_loader as evaluation_loader
    from .loader import training_loader as training_loader
    from .opening import open_images as open_images
    from .opening import require_source as require_source
    from .splits import Splitting as Splitting
    from .stream import ImageStream as ImageStream
    from .transforms import build_transform as build_transform

__getattr__, __dir__, __all__ = attach(__name__)
