"""Class activation maps of the convolution head, alone and spread by the attention of the transformer branch.

Shapes: B images, T classes asked for per image, h x w a map, N patch tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conformer_vision.explain.base import Activation, at_centres
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
def attention_cam(
    model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None
) -> Activation:
    """Spread the positive class maps of the convolution head by attention (TransCAM, Li et al. 2022).

    On the grid of the patch tokens, a map is multiplied by the attention between patches, averaged over the
    heads and the chosen blocks: a patch receives the evidence of the patches that it attends to.
    """
    assert isinstance(model, Conformer)  # as METHODS says
    inside = model.forward_attention(images, return_features=True)
    assert isinstance(inside, AttentionFeatures) and isinstance(model.conv_head, nn.Linear)
    last = inside.blocks[-1].map
    weight, bias = model.conv_head.weight[classes], model.conv_head.bias[classes]
    maps = torch.einsum("bchw,btc->bthw", last, weight)
    patch = model.config.patch_size
    grid = -(-images.shape[2] // patch), -(-images.shape[3] // patch)
    positive = at_centres(maps.clamp(min=0), map_cells(last, images), patch_cells(patch), grid)
    numbers = blocks or range(1, len(inside.attention) + 1)
    between = torch.stack([inside.attention[number - 1][:, :, 1:, 1:].mean(1) for number in numbers]).mean(0)
    spread = torch.einsum("bpq,btq->btp", between, positive.flatten(2)).unflatten(2, grid)
    return Activation(spread, patch_cells(patch), maps.mean((2, 3)) + bias)
