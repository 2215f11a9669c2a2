"""The evaluation transform: from an RGB image to the normalised tensor that a network takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

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

    def __call__(self, image: Image.Image) -> Image.Image:
        most = self._most * min(image.size)
        if max(image.size) <= most:
            return image
        width, height = (min(edge, most) for edge in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
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
