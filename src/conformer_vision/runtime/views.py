"""Several looks at one image, larger, smaller or mirrored: what heat maps and answers are averaged over.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from conformer_vision.errors import UserError

from .base import Floats


@dataclass(frozen=True)
class View:
    """One look at an image, as it is by default."""

    scale: float = 1.0
    """Size as a multiple of the input's own."""
    mirrored: bool = False

    def edges(self, height: int, width: int) -> tuple[int, int]:
        """Return the pixels of the view of an input of that size."""
        if self.scale == 1:
            return height, width
        return max(round(height * self.scale), 1), max(round(width * self.scale), 1)

    def of(self, images: Floats) -> Floats:
        """Return the view of prepared images (B, C, H, W), at its own size: bicubic, with antialiasing."""
        height, width = self.edges(images.shape[2], images.shape[3])
        if self.scale != 1:
            planes = images.reshape(-1, *images.shape[2:])
            bicubic = Image.Resampling.BICUBIC
            resized = [Image.fromarray(plane).resize((width, height), bicubic) for plane in planes]
            images = np.stack([np.asarray(each) for each in resized]).reshape(
                *images.shape[:2], height, width
            )
        return np.ascontiguousarray(images[..., ::-1]) if self.mirrored else images


@dataclass(frozen=True)
class Views:
    """The views of every image: each scale, and with ``flip`` its mirror image too.

    Raises:
        UserError: No scale, or one that is not a positive number.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise UserError(f"scales {list(self.scales)}: give one or more positive numbers")

    def __iter__(self) -> Iterator[View]:
        for scale in self.scales:
            yield View(scale)
            if self.flip:
                yield View(scale, mirrored=True)

    def __len__(self) -> int:
        return len(self.scales) * (2 if self.flip else 1)

    @property
    def cost(self) -> str:
        """What looking so often takes, for people."""
        pixels = sum(view.scale**2 for view in self)
        return f"{len(self)} forward passes per image, {pixels:.1f} times the pixels"


SCALES = (0.875, 1.0, 1.125)
"""Scales of test-time augmentation, where none are named."""


def parse_views(text: str | Views | None) -> Views:
    """Read what test-time augmentation is asked for; None is a single look at the image as it is.

    Args:
        text: ``flip``, ``scales``, ``flip+scales``, or with scales of one's own ``scales=0.8,1,1.25``.

    Raises:
        UserError: It is something else, or a scale is no positive number.
    """
    if not isinstance(text, str):
        return text or Views()
    flip, scales = False, Views().scales
    for part in text.replace(" ", "").split("+"):
        name, given, values = part.partition("=")
        if part == "flip":
            flip = True
        elif name == "scales":
            scales = _numbers(values, text) if given else SCALES
        else:
            raise UserError(f"tta {text!r}: give flip, scales, flip+scales or scales=0.8,1,1.25")
    return Views(scales, flip)


def _numbers(values: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values.split(","))
    except ValueError as error:
        raise UserError(f"tta {text!r}: scales are numbers with commas between them") from error
