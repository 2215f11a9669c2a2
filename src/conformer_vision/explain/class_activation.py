"""Class activation maps of the convolution head, alone and spread by the attention of the transformer branch.

Shapes: B images, T classes asked for per image, h x w a map, N patch tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conformer_vision.explain.base import Activation, Cells, at_centres
from conformer_vision.explain.networks import class_maps_of, map_cells, patch_cells
from conformer_vision.models import AttentionFeatures, Conformer


@torch.no_grad()
def cam(model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None) -> Activation:
    """Weigh the last feature map by the convolution head (Zhou et al. 2016).

    The mean of a map over its cells plus the head's bias is the head's logit, exactly.
    """
    maps, bias, cells = class_maps_of(model, images)
    chosen = maps[torch.arange(len(maps))[:, None], classes]
    return Activation(chosen, cells, chosen.mean((2, 3)) + bias[classes])


@torch.no_grad()
def token_cam(model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None) -> Activation:
    """Weigh the class maps of the convolution head by the class token's attention (TS-CAM, Gao et al. 2021).

    A cell of the patch tokens' grid has the evidence there times the attention that the class token pays it,
    averaged over the heads and the chosen blocks. TS-CAM takes its class maps from the patch tokens.
    """
    maps, attention, scores = _on_tokens(model, images, classes, blocks)
    weights = attention[:, 0, 1:].unflatten(1, maps.shape[2:])
    return Activation(maps * weights[:, None], _cells_of_tokens(model), scores)


@torch.no_grad()
def attention_cam(
    model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None
) -> Activation:
    """Spread the positive class maps of the convolution head by attention (TransCAM, Li et al. 2022).

    On the grid of the patch tokens, a map is multiplied by the attention between patches, averaged over the
    heads and the chosen blocks: a patch receives the evidence of the patches that it attends to.
    """
    maps, attention, scores = _on_tokens(model, images, classes, blocks, positive=True)
    spread = torch.einsum("bpq,btq->btp", attention[:, 1:, 1:], maps.flatten(2))
    return Activation(spread.unflatten(2, maps.shape[2:]), _cells_of_tokens(model), scores)


def _on_tokens(
    model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None, *, positive: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return class maps (B, T, h, w) on the patch tokens' grid, attention (B, 1+N, 1+N), and logits (B, T).

    The attention is the mean over the heads and the chosen blocks. ``positive`` sets maps below zero to zero.
    """
    assert isinstance(model, Conformer)  # as METHODS says
    inside = model.forward_attention(images, return_features=True)
    assert isinstance(inside, AttentionFeatures) and isinstance(model.conv_head, nn.Linear)
    last = inside.blocks[-1].map
    weight, bias = model.conv_head.weight[classes], model.conv_head.bias[classes]
    maps = torch.einsum("bchw,btc->bthw", last, weight)
    patch = model.config.patch_size
    grid = -(-images.shape[2] // patch), -(-images.shape[3] // patch)
    evidence = maps.clamp(min=0) if positive else maps
    placed = at_centres(evidence, map_cells(last, images), _cells_of_tokens(model), grid)
    numbers = blocks or range(1, len(inside.attention) + 1)
    attention = torch.stack([inside.attention[number - 1].mean(1) for number in numbers]).mean(0)
    return placed, attention, maps.mean((2, 3)) + bias


def _cells_of_tokens(model: nn.Module) -> Cells:
    assert isinstance(model, Conformer)
    return patch_cells(model.config.patch_size)
