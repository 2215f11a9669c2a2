"""Small heat maps for pages: the evidence by branch, and what every block holds.

Shapes: h x w a map, at most `HEAT_EDGE` cells an edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from conformer_vision.explain.coupling import couplings
from conformer_vision.explain.explainer import relative
from conformer_vision.explain.methods import METHODS, heat_maps, one_branch_method
from conformer_vision.models import Conformer

HEAT_EDGE = 48
"""Longest edge of a heat map on a page; the browser enlarges it smoothly."""
TITLES = {"conv": "Convolution branch", "trans": "Transformer branch", "coupled": "Both, coupled"}
CONFORMER = {"conv": "cam", "trans": "gradient-rollout", "coupled": "token-cam"}
"""The method that shows each of these for a Conformer."""


class BlockMaps(NamedTuple):
    """What one block holds, each (h, w) in [0, 1]."""

    number: int
    """From 1."""
    map: NDArray[np.float32]
    """The mean magnitude of the feature map that leaves it."""
    tokens: NDArray[np.float32]
    """That of the patch tokens."""
    attention: NDArray[np.float32]
    """What the class token attends to."""


def view_methods(model: nn.Module, batch: Tensor) -> dict[str, str]:
    """Return the views of a network with the method of each: those of `TITLES`, or one called by its method.

    Args:
        model: A Conformer, or another model, which has one view.
        batch: One image (1, C, H, W).
    """
    if isinstance(model, Conformer):
        return dict(CONFORMER)
    name = one_branch_method(model, batch)
    return {name: name}


def evidence(
    model: nn.Module, batch: Tensor, numbers: Sequence[int], *, views: int = len(CONFORMER)
) -> dict[str, list[NDArray[np.float32]]]:
    """Return small heat maps in [0, 1] by view, in the order of the classes.

    Args:
        model: A Conformer, or another model, which has one view.
        batch: One image (1, C, H, W).
        numbers: Numbers of the classes.
        views: How many of a Conformer's views, in the order of `TITLES`.
    """
    methods = dict(list(view_methods(model, batch).items())[:views])
    maps = {title: heat_maps(model, batch, numbers, method=name).maps for title, name in methods.items()}
    return {
        title: [_small(values) for values in relative(maps[title][0], signed=METHODS[name].signed)]
        for title, name in methods.items()
    }


def block_maps(model: nn.Module, batch: Tensor) -> Iterator[BlockMaps]:
    """Yield what each block of a Conformer holds; nothing for another network.

    Args:
        model: The network.
        batch: One image (1, C, H, W).
    """
    if not isinstance(model, Conformer):
        return
    for view in couplings(model, batch).blocks:
        values = (view.map_after, view.tokens_after, view.attention)
        yield BlockMaps(view.block, *(_small(relative(each[0], signed=False)) for each in values))


def _small(values: Tensor) -> NDArray[np.float32]:
    """Return values (h, w), averaged to at most `HEAT_EDGE` cells an edge."""
    scale = min(1.0, HEAT_EDGE / max(values.shape))
    if scale < 1:
        rows, columns = (max(round(edge * scale), 1) for edge in values.shape)
        values = torch.nn.functional.adaptive_avg_pool2d(values[None, None], (rows, columns))[0, 0]
    small: NDArray[np.float32] = values.cpu().float().numpy()
    return small
