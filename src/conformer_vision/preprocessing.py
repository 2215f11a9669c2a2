"""From an RGB image to the normalised array that a network takes, planned before the image is decoded.

Needs NumPy and Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, cast, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.errors import UserError
from conformer_vision.geometry import Kept, Need, Size, kept_in_evaluation, middle, reduced_size

if TYPE_CHECKING:
    from conformer_vision.spec import Preprocessing

Array = NDArray[np.float32]
T = TypeVar("T")
U = TypeVar("U")


class Reader(Protocol):
    """Reads one image, as `open_image` does; it may ignore what is needed and read the image in full."""

    def __call__(self, *, need: Need | None) -> Image.Image:
        """Read the image, of which a transform will keep so much."""


def array_pipeline(preprocessing: Preprocessing) -> Pipeline[Array]:
    """Build the resizing, cropping and normalisation of a specification: timm's transform for evaluation.

    Returns:
        A function from an RGB image of any size to float32 values (C, H, W). One channel makes it grey.

    Raises:
        UserError: The specification has neither one nor three channels.
    """
    height, width = preprocessing.input_size[1:]
    fill = (0,) * preprocessing.input_size[0]
    if preprocessing.crop_mode == "border":
        fill = tuple(round(255 * value) for value in preprocessing.mean)
    return Pipeline(
        partial(kept_in_evaluation, preprocessing), preprocessing, stages=[_Middle((width, height), fill)]
    )


@final
class Pipeline(Generic[T]):
    """A transform from an RGB image to values (C, H, W) that says beforehand what it keeps of the image.

    Called with an image it transforms it. `read_through` reads an image for it, in part where that is enough.

    Args:
        keep: Which part of an image of a size to keep, and at what size; it may draw at random.
        preprocessing: Size, interpolation, mean and standard deviation of the input.
        stages: From resized image to image of the input's size; the values are normalised here, which takes
            less time than torchvision needs on a small image.
        after: From normalised values to what the pipeline returns; see `then`.

    Raises:
        UserError: Neither one nor three channels.
    """

    def __init__(
        self,
        keep: Need,
        preprocessing: Preprocessing,
        *,
        stages: Sequence[Callable[[Any], Any]],
        after: Sequence[Callable[[Any], Any]] = (),
    ) -> None:
        channels = preprocessing.input_size[0]
        if channels not in (1, 3):
            raise UserError(
                f"input_size {preprocessing.input_size}: images have 3 channels, or 1 turned to grey, "
                f"not {channels}"
            )
        self._keep, self._preprocessing = keep, preprocessing
        self._resampling = Image.Resampling[preprocessing.interpolation.upper()]
        self._is_grey = channels == 1
        self._stages, self._after = tuple(stages), tuple(after)
        self._normalize = _Normalize(preprocessing.mean, preprocessing.std)

    def then(self, function: Callable[[T], U]) -> Pipeline[U]:
        """Return the pipeline with a function behind it, such as `torch.from_numpy`."""
        return Pipeline(self._keep, self._preprocessing, stages=self._stages, after=(*self._after, function))

    def plan(self, size: Size) -> Plan[T]:
        """Decide how to transform one image of that size; what is random about its crop is drawn now."""
        return Plan(self, size, self._keep(size))

    def __call__(self, image: Image.Image) -> T:
        """Transform an image that is in memory."""
        return self.plan(image.size)(image)

    def __repr__(self) -> str:
        steps = [*self._stages, self._normalize, *self._after]
        return f"Pipeline(keep={self._keep}, grey={self._is_grey}, {steps})"

    def _transformed(self, image: Image.Image, kept: Kept, *, reduction: int) -> T:
        left, top, right, bottom = kept.part.divided(reduction)
        around = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
        if around != (0, 0, *image.size):
            image = image.crop(around)
        if self._is_grey:
            image = image.convert("L")
        box = (left - around[0], top - around[1], right - around[0], bottom - around[1])
        image = image.resize(kept.size, self._resampling, box)
        for stage in self._stages:
            image = stage(image)
        values: Any = self._normalize(image)
        for function in self._after:
            values = function(values)
        return cast(T, values)


class Plan(NamedTuple, Generic[T]):
    """How a pipeline will transform one image."""

    pipeline: Pipeline[T]
    size: Size
    """Width and height of the whole image."""
    kept: Kept
    """What is kept of it."""

    def __call__(self, image: Image.Image) -> T:
        """Transform the image, decoded in full or at `Kept.reduction`.

        Raises:
            ValueError: The image has another size.
        """
        reduction = 1 if image.size == self.size else self.kept.reduction
        if image.size != reduced_size(self.size, reduction):
            raise ValueError(f"the transform was planned for an image of {self.size}, not {image.size}")
        return self.pipeline._transformed(image, self.kept, reduction=reduction)


def read_through(
    transform: Callable[[Image.Image], T], read: Reader, *, begin: Callable[[], object] = lambda: None
) -> T:
    """Read an image and transform it; where it is a large JPEG, decode no more than the transform keeps.

    Everything that shows images to a network reads them here, so that all commands show it the same.

    Args:
        transform: A `Pipeline`, or any other function of an image, which gets the image in full.
        read: Reads the image, such as ``partial(open_image, path)``.
        begin: Called before the transform draws anything at random.

    Raises:
        BrokenImageError: The image cannot be read, and whatever else ``read`` raises.
    """
    if type(transform) is not Pipeline:
        image = read(need=None)
        begin()
        return transform(image)
    pipeline: Pipeline[T] = transform
    plans: list[Plan[T]] = []

    def need(size: Size) -> Kept:
        begin()
        plans[:] = [pipeline.plan(size)]
        return plans[0].kept

    image = read(need=need)
    if not plans:
        need(image.size)
    return plans[0](image)


@dataclass(frozen=True)
class _Middle:
    """Cuts the middle out of an image, as torchvision and timm do; what is too small gets a border."""

    size: Size
    """Width and height."""
    fill: tuple[int, ...]
    """Colour of the border."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == self.size:
            return image
        left, top = (middle(after, kept) for after, kept in zip(image.size, self.size, strict=True))
        right, bottom = left + self.size[0], top + self.size[1]
        if left >= 0 and top >= 0 and right <= image.width and bottom <= image.height:
            return image.crop((left, top, right, bottom))
        bordered = Image.new(image.mode, self.size, self.fill if len(self.fill) > 1 else self.fill[0])
        bordered.paste(image, (-left, -top))
        return bordered


class _Normalize:
    """Turn an 8-bit image into (value / 255 - mean) / std, float32 (C, H, W)."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        means, stds = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        self._scale = 1 / (255 * stds)
        self._shift = -means / stds

    def __call__(self, image: Image.Image) -> Array:
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        # Bytes are laid out by channel, not floats, and the arithmetic is in place: a fraction of the time.
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
        values *= self._scale
        values += self._shift
        return values

    def __repr__(self) -> str:
        return f"Normalize(scale={self._scale.ravel()}, shift={self._shift.ravel()})"
