"""From an RGB image to the normalised tensor that a network takes, by timm's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import ResizeKeepRatio
from torchvision import transforms

from conformer_vision.errors import UserError
from conformer_vision.preprocessing import Transform, compose, evaluation_pipeline
from conformer_vision.spec import Preprocessing

from .augment import AugmentConfig


def build_transform(preprocessing: Preprocessing, augment: AugmentConfig | None = None) -> Transform:
    """Build the transform from an RGB image of any size to a float tensor (C, H, W), normalised.

    Args:
        preprocessing: size and normalisation of the input; one channel makes images grey. How to resize
            and crop applies to evaluation only.
        augment: random transforms for training; None for evaluation.

    Raises:
        UserError: neither one nor three channels, or a policy that timm does not have.
    """
    if augment is None:
        return evaluation_pipeline(preprocessing)
    stages = _training_stages(preprocessing, augment)
    size = preprocessing.input_size[1:]
    if augment.crop_for(*size) == "pad":
        stages[:1] = [
            ResizeKeepRatio(size, interpolation=preprocessing.interpolation),
            transforms.RandomCrop(size, padding=augment.pad or max(size) // 8),
        ]
    erase = [RandomErasing(augment.re_prob, mode=augment.re_mode, device="cpu")] if augment.re_prob else []
    return compose(stages, preprocessing, after=erase)


def _training_stages(preprocessing: Preprocessing, augment: AugmentConfig) -> list[Any]:
    """Return timm's random transforms from image to image, beginning with the crop."""
    jitter: Any = augment.color_jitter or None  # 0 would cost time and change nothing
    try:
        stages = create_transform(
            preprocessing.input_size,
            is_training=True,
            separate=True,
            interpolation=preprocessing.interpolation,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=0.5 if augment.hflip is None else augment.hflip,
            color_jitter=jitter,
            auto_augment=augment.auto_augment,
            mean=preprocessing.mean,  # what policies fill with
        )
    except (AssertionError, KeyError, ValueError) as error:
        if augment.auto_augment is None:
            raise
        raise UserError(
            f"auto_augment {augment.auto_augment!r}: timm has no such policy; "
            "examples are rand-m9-mstd0.5-inc1, augmix-m3-w3 and original"
        ) from error
    crop_and_flip, colours, _ = (list(stage.transforms) for stage in stages)
    for operation in _operations(colours):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return [*crop_and_flip, *colours]


def _operations(stages: list[Any]) -> Iterator[AugmentOp]:
    """Yield the operations of timm's RandAugment, AugMix or AutoAugment among the stages."""
    for stage in stages:
        yield from getattr(stage, "ops", ())
        for sequence in getattr(stage, "policy", ()):
            yield from sequence


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Posterize as timm does, with black for 0 bits, which timm asks for and Pillow 13 refuses."""
    return posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)
