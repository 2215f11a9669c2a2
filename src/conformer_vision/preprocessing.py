"""The evaluation transform: from an RGB image to the normalised tensor that a network takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

from conformer_vision.errors import UserError

if TYPE_CHECKING:
    from conformer_vision.spec import ModelSpec, Preprocessing

Transform = Callable[[Image.Image], Tensor]

_MOST_ELONGATED = 64
"""Largest ratio of an image's edges that is resized as a whole."""


def evaluation_transform(spec: ModelSpec) -> Transform:
    """Build the resizing, cropping and normalisation that a specification asks for.

    Returns:
        A function from an RGB image of any size to a float tensor (C, H, W). One channel makes it grey.

    Raises:
        UserError: The specification has neither one nor three channels.
    """
    return evaluation_pipeline(spec.preprocessing)


def evaluation_pipeline(preprocessing: Preprocessing) -> Transform:
    """Build the transform of `evaluation_transform` from its values."""
    stages = create_transform(**asdict(preprocessing)).transforms
    return compose(stages[:-2], preprocessing)


def compose(stages: Sequence[Any], preprocessing: Preprocessing, *, after: Sequence[Any] = ()) -> Transform:
    """Chain transforms of images with what every pipeline shares: long images, grey, normalisation.

    Args:
        stages: From image to image of the input's size, without timm's last two, ToTensor and Normalize,
            which take longer than all others on a small image.
        preprocessing: Size, mean and standard deviation of the input.
        after: From normalised tensor to tensor.

    Raises:
        UserError: Neither one nor three channels.
    """
    channels, height, width = preprocessing.input_size
    if channels not in (1, 3):
        raise UserError(
            f"input_size {preprocessing.input_size}: images have 3 channels, or 1 turned to grey, "
            f"not {channels}"
        )
    grey = [transforms.Grayscale()] if channels == 1 else []
    normalize = _ToNormalizedTensor(preprocessing.mean, preprocessing.std)
    composed: Transform = transforms.Compose([_Shortened(height, width), *grey, *stages, normalize, *after])
    return composed


class _Shortened:
    """Keep the middle of an extremely long or high image, and all of any other.

    Resized by its short edge, a line of 65,000 pixels would take 12 GB; crops never see its ends.
    """

    def __init__(self, height: int, width: int) -> None:
        """Take the size of the network's input."""
        long, short = max(height, width), min(height, width)
        self._most = max(min(_MOST_ELONGATED, short), -(-long // short))

    def box(self, size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
        """Return left and top edge and the size of what is kept of an image of width and height `size`."""
        most = self._most * min(size)
        width, height = (min(edge, most) for edge in size)
        return (size[0] - width) // 2, (size[1] - height) // 2, (width, height)

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top, (width, height) = self.box(image.size)
        if (width, height) == image.size:
            return image
        return image.crop((left, top, left + width, top + height))

    def __repr__(self) -> str:
        return f"Shortened(most={self._most})"


class _ToNormalizedTensor:
    """Turn an 8-bit image into (value / 255 - mean) / std, a float tensor (C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._scale = 1 / (255 * np.array(std, dtype=np.float32))
        self._shift = -np.array(mean, dtype=np.float32) / np.array(std, dtype=np.float32)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, -1)
        return torch.from_numpy(pixels * self._scale + self._shift).permute(2, 0, 1).contiguous()

    def __repr__(self) -> str:
        return f"ToNormalizedTensor(scale={self._scale}, shift={self._shift})"


class Box(NamedTuple):
    """A part of an image: its edges in pixels, not always whole; they lie outside where it was padded."""

    left: float
    top: float
    right: float
    bottom: float


def seen_part(preprocessing: Preprocessing, size: tuple[int, int]) -> Box:
    """Return the part of an image that the evaluation transform shows to the network.

    Args:
        preprocessing: What prepares the image.
        size: Width and height of the image.
    """
    _, height, width = preprocessing.input_size
    left, top, shortened = _Shortened(height, width).box(size)
    edges = []
    resized = _resized(preprocessing, shortened)
    for start, before, after, kept in zip((left, top), shortened, resized, (width, height), strict=True):
        # timm and torchvision crop from the middle, and pad what is too small.
        first = round((after - kept) / 2) if after >= kept else -((kept - after) // 2)
        scale = before / after
        edges.append((start + first * scale, start + (first + kept) * scale))
    (left_edge, right_edge), (top_edge, bottom_edge) = edges
    return Box(left_edge, top_edge, right_edge, bottom_edge)


def _resized(preprocessing: Preprocessing, size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height that timm resizes an image to before the crop."""
    _, height, width = preprocessing.input_size
    wide, high = (math.floor(edge / preprocessing.crop_pct) for edge in (width, height))
    if preprocessing.crop_mode == "squash":
        return wide, high
    ratios = size[0] / wide, size[1] / high
    if preprocessing.crop_mode == "border":
        return round(size[0] / max(ratios)), round(size[1] / max(ratios))
    if wide != high:
        return round(size[0] / min(ratios)), round(size[1] / min(ratios))
    longer = int(wide * max(size) / min(size))  # torchvision rounds down
    return (wide, longer) if size[0] <= size[1] else (longer, wide)
