"""Which part of an image a network is shown, and at what size; from sizes alone, without torch or Pillow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from conformer_vision.spec import Preprocessing

Size = tuple[int, int]
"""Width and height of an upright image in pixels."""

REDUCTIONS = (8, 4, 2)
"""What the edges of a JPEG can be divided by while it is decoded, which saves most of the time."""
_MARGIN = 2
"""Pixels that a reduced image has at least for each one that is kept of it."""
_MOST_ELONGATED = 64
"""Largest ratio of an image's edges that is resized as a whole."""


class Box(NamedTuple):
    """A part of an image: its edges in pixels, not always whole; they lie outside where it was padded."""

    left: float
    top: float
    right: float
    bottom: float

    def divided(self, by: int) -> Box:
        """Return the same part of an image whose edges are so many times shorter."""
        return Box(*(edge / by for edge in self))


class Kept(NamedTuple):
    """What a transform keeps of an image: a part of it, at another size."""

    part: Box
    size: Size
    """Width and height that the part is resized to."""

    @property
    def reduction(self) -> int:
        """What the image's edges may be divided by before the part is taken: 1, 2, 4 or 8.

        The part then still has twice as many pixels as are kept of it, or more, and neither edge is shorter
        than the one it is resized to.
        """
        across, down = self.part.right - self.part.left, self.part.bottom - self.part.top
        width, height = self.size
        for by in REDUCTIONS:
            enough = across * down >= _MARGIN * width * height * by * by
            if enough and across >= width * by and down >= height * by:
                return by
        return 1


Need = Callable[[Size], Kept]
"""Says what will be kept of an upright image of that size, before the image is decoded."""


def reduced_size(size: Size, by: int) -> Size:
    """Return the size of an image whose edges are divided while it is decoded; they are rounded up."""
    return -(-size[0] // by), -(-size[1] // by)


def shortened(size: Size, input_size: tuple[int, int, int]) -> Box:
    """Return the middle of an extremely long or high image, and all of any other.

    Resized by its short edge, a line of 65,000 pixels would take 12 GB; crops never see its ends.

    Args:
        size: Of the image.
        input_size: Of the network: channels, height, width.
    """
    long, short = max(input_size[1:]), min(input_size[1:])
    most = max(min(_MOST_ELONGATED, short), -(-long // short)) * min(size)
    width, height = (min(edge, most) for edge in size)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return Box(left, top, left + width, top + height)


def kept_in_evaluation(preprocessing: Preprocessing, size: Size) -> Kept:
    """Return what is kept of an image before the crop from its middle.

    Args:
        preprocessing: What prepares the image.
        size: Of the image.
    """
    part = shortened(size, preprocessing.input_size)
    return Kept(part, _resized(preprocessing, (int(part.right - part.left), int(part.bottom - part.top))))


def seen_part(preprocessing: Preprocessing, size: Size) -> Box:
    """Return the part of an image that the evaluation transform shows to the network.

    Args:
        preprocessing: What prepares the image.
        size: Of the image.
    """
    _, height, width = preprocessing.input_size
    part, resized = kept_in_evaluation(preprocessing, size)
    edges = []
    for start, end, after, kept in zip(part[:2], part[2:], resized, (width, height), strict=True):
        first = middle(after, kept)
        scale = (end - start) / after
        edges.append((start + first * scale, start + (first + kept) * scale))
    (left, right), (top, bottom) = edges
    return Box(left, top, right, bottom)


def middle(edge: int, kept: int) -> int:
    """Return where the middle of an image's edge begins; before the image where that is too small.

    timm and torchvision crop so, and pad what is too small.
    """
    return round((edge - kept) / 2) if edge >= kept else -((kept - edge) // 2)


def _resized(preprocessing: Preprocessing, size: Size) -> Size:
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
