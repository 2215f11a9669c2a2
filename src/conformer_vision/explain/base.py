"""What every method gives: coarse maps, where their cells lie on the image, and scores.

Shapes: B images of H x W pixels, T classes asked for per image, h x w a coarse map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Activation", "Cells", "at_centres", "at_image_size"]


class Cells(NamedTuple):
    """Where the cells of a map lie along one axis of the image."""

    stride: float
    """Pixels between the centres of neighbouring cells."""
    first: float
    """Place of the first cell's centre; the centre of the first pixel is 0."""


class Activation(NamedTuple):
    """The answer of a method for a batch."""

    maps: Tensor
    """(B, T, h, w): the evidence for each class, in the method's own unit."""
    cells: Cells
    """Of rows and of columns."""
    scores: Tensor
    """(B, T): the logit of each class, from the head that the method explains."""


def at_image_size(maps: Tensor, cells: Cells, size: tuple[int, int]) -> Tensor:
    """Interpolate maps (B, T, h, w) to the pixels of the image, (B, T, H, W).

    Bilinear between the centres of the cells; beyond the outermost centres their values hold. What a network
    pads beyond the image is cut off.
    """
    return _resample(maps, cells, [torch.arange(pixels, dtype=torch.float64) for pixels in size])


def at_centres(maps: Tensor, cells: Cells, other: Cells, grid: tuple[int, int]) -> Tensor:
    """Interpolate maps (B, T, h, w) to the centres of another grid's cells, (B, T, *grid)."""
    axes = [other.first + other.stride * torch.arange(number, dtype=torch.float64) for number in grid]
    return _resample(maps, cells, axes)


def _resample(maps: Tensor, cells: Cells, axes: list[Tensor]) -> Tensor:
    """Interpolate at places, in pixels, along the rows and along the columns."""
    numbers = maps.shape[2:]
    rows, columns = (
        _mixing(number, cells, axis).to(maps) for number, axis in zip(numbers, axes, strict=True)
    )
    return rows @ maps @ columns.T


def _mixing(number: int, cells: Cells, places: Tensor) -> Tensor:
    """Return the weights (places, cells) of linear interpolation along one axis."""
    at = ((places - cells.first) / cells.stride).clamp(0, number - 1)
    before = at.floor().long()
    share = (at - before)[:, None]
    after = (before + 1).clamp(max=number - 1)
    return F.one_hot(before, number) * (1 - share) + F.one_hot(after, number) * share
