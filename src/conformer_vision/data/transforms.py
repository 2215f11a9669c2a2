"""From an RGB image to the normalised tensor that a network takes, by timm's transforms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torch import Tensor
from torchvision import transforms

from conformer_vision.errors import UserError
from conformer_vision.geometry import Box, Kept, Size, shortened
from conformer_vision.preprocessing import Pipeline
from conformer_vision.spec import Preprocessing
from conformer_vision.tensors import evaluation_pipeline

from .augment import AugmentConfig


def build_transform(preprocessing: Preprocessing, augment: AugmentConfig | None = None) -> Pipeline[Tensor]:
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
    crop, *stages = _training_stages(preprocessing, augment)
    size = preprocessing.input_size[1:]
    keep = partial(_random_part, crop, preprocessing.input_size)
    if augment.crop_for(*size) == "pad":
        keep = partial(_whole, preprocessing.input_size)
        stages.insert(0, transforms.RandomCrop(size, padding=augment.pad or max(size) // 8))
    erase = [RandomErasing(augment.re_prob, mode=augment.re_mode, device="cpu")] if augment.re_prob else []
    return Pipeline(keep, preprocessing, stages=stages, after=[torch.from_numpy, *erase])


def _random_part(
    crop: RandomResizedCropAndInterpolation, input_size: tuple[int, int, int], size: Size
) -> Kept:
    """Draw the part of an image of that size that timm's crop resizes to the input."""
    around = shortened(size, input_size)
    top, left, height, width = crop.get_params(_only_size(around), crop.scale, crop.ratio)
    left, top = left + around.left, top + around.top
    return Kept(Box(left, top, left + width, top + height), (input_size[2], input_size[1]))


def _whole(input_size: tuple[int, int, int], size: Size) -> Kept:
    """Keep the whole image, resized so that it just covers the input."""
    part = shortened(size, input_size)
    height, width = ResizeKeepRatio.get_params(_only_size(part), input_size[1:], longest=0.0)
    return Kept(part, (width, height))


def _only_size(part: Box) -> Tensor:
    """Return what has the size of a part of an image for timm and torchvision, and no pixels."""
    shape = (int(part.bottom - part.top), int(part.right - part.left))
    return torch.empty(3, *shape, device="meta")


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
