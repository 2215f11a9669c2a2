"""What the branches hold and exchange in every block, and the same with couplings cut.

Shapes: B images, h x w a map.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.models import AttentionFeatures, BranchLogits, Conformer

__all__ = ["BlockView", "Couplings", "couplings"]


class BlockView(NamedTuple):
    """What goes through one block, each the mean magnitude over the channels, (B, h, w).

    The first block is not coupled, so it only has `map_after` and `tokens_after`.
    """

    block: int
    map_before: Tensor | None
    """The map (after the first bottleneck) that FCUUp's answer meets in the fusion."""
    from_tokens: Tensor | None
    """What FCUUp brings to the map."""
    map_after: Tensor
    """The map that leaves the block."""
    tokens_before: Tensor | None
    """The patch tokens that enter the block, on their grid."""
    from_map: Tensor | None
    """What FCUDown brings to the tokens."""
    tokens_after: Tensor
    """The patch tokens that leave the block."""
    attention: Tensor
    """What the class token attends to, the mean of the heads."""


class Couplings(NamedTuple):
    """A forward pass, block by block."""

    blocks: list[BlockView]
    logits: BranchLogits
    """What both heads answer."""


@torch.no_grad()
def couplings(model: nn.Module, images: Tensor, *, cut: Collection[int] = ()) -> Couplings:
    """Look into every block of a Conformer (figures 1 and 4 of the paper show such maps).

    Args:
        model: A Conformer in eval mode; it stays as it is.
        images: Normalised images (B, C, H, W).
        cut: Numbers of the blocks, from 2, whose couplings bring nothing, in either direction.

    Raises:
        UserError: Another network, or a block that has no couplings.
    """
    if not isinstance(model, Conformer):
        raise UserError(f"{type(model).__name__} has no couplings; a Conformer has")
    depth = len(model.blocks)
    for number in cut:
        if not 2 <= number <= depth:
            raise UserError(f"cut {sorted(cut)}: block {number} has no couplings; use 2 to {depth}")
    patch = model.config.patch_size
    grid = -(-images.shape[2] // patch), -(-images.shape[3] // patch)
    twin = deepcopy(model)  # the hooks below are nobody else's business
    seen: list[dict[str, Tensor]] = [{} for _ in range(depth)]
    for number, block in enumerate(twin.blocks, start=1):
        _watch(block, seen[number - 1], cut=number in cut)
    inside = twin.forward_attention(images, return_features=True)
    assert isinstance(inside, AttentionFeatures)
    views = []
    parts = zip(seen, inside.blocks, inside.attention, strict=True)
    for number, (found, after, weights) in enumerate(parts, start=1):
        assert after.tokens is not None  # only the stem has none
        own = {name: _magnitude(value, grid) for name, value in found.items()}
        views.append(
            BlockView(
                number,
                map_before=own.get("map_before"),
                from_tokens=own.get("from_tokens"),
                map_after=_magnitude(after.map, grid),
                tokens_before=own.get("tokens_before"),
                from_map=own.get("from_map"),
                tokens_after=_magnitude(after.tokens[:, 1:], grid),
                attention=weights[:, :, 0, 1:].mean(1).unflatten(1, grid),
            )
        )
    return Couplings(views, model.branch_logits(inside.features))


def _watch(block: nn.Module, seen: dict[str, Tensor], *, cut: bool) -> None:
    """Keep what a block's parts give; let its couplings bring nothing if they are cut."""
    if not hasattr(block, "fcu_down"):
        return

    def down(module: Any, arguments: Any, result: Any) -> Any:
        patches, height, width = result
        patches = torch.zeros_like(patches) if cut else patches
        seen["from_map"] = patches
        return patches, height, width

    def up(module: Any, arguments: Any, result: Any) -> Any:
        result = torch.zeros_like(result) if cut else result
        seen["from_tokens"] = result
        return result

    def entered(module: Any, arguments: Any) -> None:
        seen["tokens_before"] = arguments[1][:, 1:]

    parts: Any = block
    parts.register_forward_pre_hook(entered)
    parts.bottleneck.register_forward_hook(
        lambda module, arguments, result: seen.update(map_before=result[0])
    )
    parts.fcu_down.register_forward_hook(down)
    parts.fcu_up.register_forward_hook(up)


def _magnitude(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the mean magnitude of a map (B, C, h, w) or of patch tokens (B, N, D), (B, h, w)."""
    if values.ndim == 3:
        values = values.transpose(1, 2).unflatten(2, grid)
    return values.abs().mean(1)
