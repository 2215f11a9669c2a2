"""From an RGB image to the normalised tensor that a network takes, by timm's transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision import transforms

from conformer_vision.errors import UserError
from conformer_vision.preprocessing import Transform, compose, evaluation_pipeline
from conformer_vision.spec import CROP_MODES, INTERPOLATIONS

from .augment import AugmentConfig


def build_transform(
    *,
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    crop_mode: str,
    augment: AugmentConfig | None,
) -> Transform:
    """RGB image of any size to a float tensor (C, H, W), normalised.

    Args:
        input_size: (C, H, W); C = 1 turns the image to grey.
        mean: one number per channel, on the scale 0..1.
        std: likewise.
        interpolation: of every resizing; one of `INTERPOLATIONS`.
        crop_pct: without augmentation: share of the resized image's edge that the crop keeps.
        crop_mode: without augmentation: ``center`` resizes the short edge and crops, ``squash``
            gives up the aspect ratio, ``border`` resizes the long edge and pads.
        augment: random transforms for training; None for evaluation.

    Raises:
        UserError: a value out of range.
    """
    channels, height, width = _checked(input_size, mean, std, interpolation, crop_pct, crop_mode)
    if augment is None:
        return evaluation_pipeline(
            input_size=input_size,
            mean=mean,
            std=std,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
        )
    common: dict[str, Any] = {
        "input_size": (channels, height, width),
        "interpolation": interpolation,
        "mean": tuple(mean),
        "std": tuple(std),
    }
    primary, secondary = _training_stages(common, augment)
    if augment.crop_for(height, width) == "pad":
        primary[:1] = [
            ResizeKeepRatio((height, width), interpolation=interpolation),
            transforms.RandomCrop((height, width), padding=augment.pad or max(height, width) // 8),
        ]
    erase = random_erasing(augment)
    return compose(
        [*primary, *secondary],
        input_size=input_size,
        mean=mean,
        std=std,
        after=[] if erase is None else [erase],
    )


def random_erasing(augment: AugmentConfig) -> Callable[[Tensor], Tensor] | None:
    """Erasing of a random rectangle in a normalised image, or in each of a batch; None where it is off."""
    if not augment.re_prob:
        return None
    return RandomErasing(augment.re_prob, mode=augment.re_mode, device="cpu")


def _training_stages(common: dict[str, Any], augment: AugmentConfig) -> tuple[list[Any], list[Any]]:
    jitter: Any = augment.color_jitter or None  # 0 would cost time and change nothing
    try:
        stages = create_transform(
            **common,
            is_training=True,
            separate=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=0.5 if augment.hflip is None else augment.hflip,
            color_jitter=jitter,
            auto_augment=augment.auto_augment,
        )
    except (AssertionError, KeyError, ValueError) as error:
        if augment.auto_augment is None:
            raise
        raise UserError(
            f"auto_augment {augment.auto_augment!r}: timm has no such policy; "
            "examples are rand-m9-mstd0.5-inc1, augmix-m3-w3 and original"
        ) from error
    primary, secondary, _ = (list(stage.transforms) for stage in stages)
    for operation in _operations(secondary):
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return primary, secondary


def _operations(stages: list[Any]) -> Iterator[AugmentOp]:
    """The operations of timm's RandAugment, AugMix or AutoAugment among the stages."""
    for stage in stages:
        yield from getattr(stage, "ops", ())
        for sequence in getattr(stage, "policy", ()):
            yield from sequence


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's, which asks for 0 bits at the end of its scale; Pillow gave black until version 13 refused."""
    return posterize(image, bits_to_keep) if bits_to_keep else Image.new(image.mode, image.size)


def _checked(
    input_size: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    crop_pct: float,
    crop_mode: str,
) -> tuple[int, int, int]:
    if len(input_size) != 3 or min(input_size) < 1:
        raise UserError(f"input_size {tuple(input_size)}: must be channels, height and width, each 1 or more")
    channels, height, width = input_size
    if channels not in (1, 3):
        raise UserError(
            f"input_size {tuple(input_size)}: images have 3 channels, or 1 turned to grey, not {channels}"
        )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"{name} {tuple(values)}: must be {channels} numbers, one per channel of the input"
            )
    if min(std) <= 0:
        raise UserError(f"std {tuple(std)}: must be above 0")
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"interpolation {interpolation!r}: must be one of {', '.join(INTERPOLATIONS)}")
    if crop_mode not in CROP_MODES:
        raise UserError(f"crop_mode {crop_mode!r}: must be one of {', '.join(CROP_MODES)}")
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct {crop_pct}: must be above 0 and at most 1")
    return channels, height, width
