"""Several looks at one image, larger, smaller or mirrored: what heat maps and answers are averaged over.

Shapes: B images of H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from conformer_vision.errors import UserError


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

    def of(self, images: Tensor) -> Tensor:
        """Return the view of prepared images (B, C, H, W), at its own size."""
        edges = self.edges(images.shape[2], images.shape[3])
        if self.scale != 1:
            images = F.interpolate(images, edges, mode="bicubic", antialias=True)
        return images.flip(3) if self.mirrored else images

    def undo(self, maps: Tensor, *, height: int, width: int) -> Tensor:
        """Return maps (B, T, h, w) of the view at the size and the side of the input."""
        maps = maps.flip(3) if self.mirrored else maps
        return maps if self.scale == 1 else F.interpolate(maps, (height, width), mode="bilinear")


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
