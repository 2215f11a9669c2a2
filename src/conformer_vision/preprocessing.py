"""From an RGB image to the normalised tensor that a network takes, planned before the image is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, final

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import Compose
from torchvision.transforms.functional import pil_modes_mapping

from conformer_vision.errors import UserError
from conformer_vision.geometry import Kept, Need, Size, kept_in_evaluation, reduced_size

if TYPE_CHECKING:
    from conformer_vision.spec import ModelSpec, Preprocessing

Transform = Callable[[Image.Image], Tensor]


class Reader(Protocol):
    """Reads one image, as `open_image` does; it may ignore what is needed and read the image in full."""

    def __call__(self, *, need: Need | None) -> Image.Image:
        """Read the image, of which a transform will keep so much."""


def evaluation_transform(spec: ModelSpec) -> Pipeline:
    """Build the resizing, cropping and normalisation that a specification asks for.

    Returns:
        A function from an RGB image of any size to a float tensor (C, H, W). One channel makes it grey.

    Raises:
        UserError: The specification has neither one nor three channels.
    """
    return evaluation_pipeline(spec.preprocessing)


def evaluation_pipeline(preprocessing: Preprocessing) -> Pipeline:
    """Build the transform of `evaluation_transform` from its values."""
    stages = create_transform(**asdict(preprocessing)).transforms
    return Pipeline(partial(kept_in_evaluation, preprocessing), preprocessing, stages=stages[1:-2])


@final
class Pipeline:
    """A transform from an RGB image to a tensor (C, H, W) that says beforehand what it keeps of the image.

    Called with an image it transforms it. `read_through` reads an image for it, in part where that is enough.

    Args:
        keep: Which part of an image of a size to keep, and at what size; it may draw at random.
        preprocessing: Size, interpolation, mean and standard deviation of the input.
        stages: From resized image to image of the input's size, without timm's last two, ToTensor and
            Normalize, which take longer than all others on a small image.
        after: From normalised tensor to tensor.

    Raises:
        UserError: Neither one nor three channels.
    """

    def __init__(
        self, keep: Need, preprocessing: Preprocessing, *, stages: Sequence[Any], after: Sequence[Any] = ()
    ) -> None:
        channels = preprocessing.input_size[0]
        if channels not in (1, 3):
            raise UserError(
                f"input_size {preprocessing.input_size}: images have 3 channels, or 1 turned to grey, "
                f"not {channels}"
            )
        self._keep = keep
        self._resampling = Image.Resampling(
            pil_modes_mapping[str_to_interp_mode(preprocessing.interpolation)]
        )
        self._is_grey = channels == 1
        self._finish = Compose([*stages, _ToNormalizedTensor(preprocessing.mean, preprocessing.std), *after])

    def plan(self, size: Size) -> Plan:
        """Decide how to transform one image of that size; what is random about its crop is drawn now."""
        return Plan(self, size, self._keep(size))

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image that is in memory."""
        return self.plan(image.size)(image)

    def __repr__(self) -> str:
        return f"Pipeline(keep={self._keep}, grey={self._is_grey}, {self._finish})"

    def _transformed(self, image: Image.Image, kept: Kept, *, reduction: int) -> Tensor:
        left, top, right, bottom = kept.part.divided(reduction)
        around = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        if around != (0, 0, *image.size):
            image = image.crop(around)
        if self._is_grey:
            image = image.convert("L")
        box = (left - around[0], top - around[1], right - around[0], bottom - around[1])
        image = image.resize(kept.size, self._resampling, box)
        tensor: Tensor = self._finish(image)
        return tensor


class Plan(NamedTuple):
    """How a pipeline will transform one image."""

    pipeline: Pipeline
    size: Size
    """Width and height of the whole image."""
    kept: Kept
    """What is kept of it."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform the image, decoded in full or at `Kept.reduction`.

        Raises:
            ValueError: The image has another size.
        """
        reduction = 1 if image.size == self.size else self.kept.reduction
        if image.size != reduced_size(self.size, reduction):
            raise ValueError(f"the transform was planned for an image of {self.size}, not {image.size}")
        return self.pipeline._transformed(image, self.kept, reduction=reduction)


def read_through(transform: Transform, read: Reader, *, begin: Callable[[], object] = lambda: None) -> Tensor:
    """Read an image and transform it; where it is a large JPEG, decode no more than the transform keeps.

    Everything that shows images to a network reads them here, so that all commands show it the same.

    Args:
        transform: A `Pipeline`, or any function from image to tensor, which gets the image in full.
        read: Reads the image, such as ``partial(open_image, path)``.
        begin: Called before the transform draws anything at random.

    Raises:
        BrokenImageError: The image cannot be read, and whatever else ``read`` raises.
    """
    if type(transform) is not Pipeline:
        image = read(need=None)
        begin()
        return transform(image)
    pipeline, plans = transform, list[Plan]()

    def need(size: Size) -> Kept:
        begin()
        plans[:] = [pipeline.plan(size)]
        return plans[0].kept

    image = read(need=need)
    if not plans:
        need(image.size)
    return plans[0](image)


class _ToNormalizedTensor:
    """Turn an 8-bit image into (value / 255 - mean) / std, a float tensor (C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        means, stds = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        self._scale = 1 / (255 * stds)
        self._shift = -means / stds

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        # Bytes are laid out by channel, not floats, and the arithmetic is in place: a fraction of the time.
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        values *= self._scale
        values += self._shift
        return torch.from_numpy(values)

    def __repr__(self) -> str:
        scale, shift = self._scale.ravel(), self._shift.ravel()
        return f"ToNormalizedTensor(scale={scale}, shift={shift})"
