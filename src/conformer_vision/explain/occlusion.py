"""Occlusion: how much a class loses when a part of the image is covered (Zeiler and Fergus 2014).

It looks at nothing inside the network, so it checks the other methods independently.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conformer_vision.explain.base import Activation, Cells

WINDOWS = 12
"""Windows along the shorter edge of the image; each covers two steps, so neighbours overlap by half."""
_AT_ONCE = 32
"""Covered images in one forward pass."""


@torch.no_grad()
def occlusion(model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None) -> Activation:
    """Cover the image window by window with its mean colour; the map is the loss of the fused logit.

    About 200 forward passes for a square image.
    """
    height, width = images.shape[2:]
    step = max(min(height, width) // WINDOWS, 1)
    tops, lefts = (torch.arange(0, edge, step).tolist() for edge in (height, width))
    scores = model(images).gather(1, classes)
    colour = images.mean((2, 3), keepdim=True)
    losses = torch.empty(len(images), classes.shape[1], len(tops) * len(lefts))
    places = [(top, left) for top in tops for left in lefts]
    for image, own in enumerate(images):
        for start in range(0, len(places), _AT_ONCE):
            part = places[start : start + _AT_ONCE]
            covered = own.repeat(len(part), 1, 1, 1)
            for row, (top, left) in zip(covered, part, strict=True):
                top, left = top + step // 2, left + step // 2
                row[:, max(top - step, 0) : top + step, max(left - step, 0) : left + step] = colour[image]
            left_over = model(covered)[:, classes[image]]
            losses[image, :, start : start + len(part)] = (scores[image] - left_over).T
    maps = losses.to(images).unflatten(2, (len(tops), len(lefts)))
    return Activation(maps, Cells(step, step // 2 - 0.5), scores)
