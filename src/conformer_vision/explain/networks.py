"""What the methods read from a network: class maps and attention, of Conformer and of other timm models.

Shapes: B images of H x W pixels, K classes, N patch tokens.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.explain.base import Cells
from conformer_vision.models import AttentionFeatures, Conformer
from conformer_vision.models.attention import recording_attention

__all__ = ["Attention", "attention_of", "cam_module", "class_maps_of", "map_cells", "patch_cells"]


class Attention(NamedTuple):
    """The attention of every block, with what the methods need beside it."""

    weights: list[Tensor]
    """Per block (B, heads, P + N, P + N): P prefix tokens first, and the class token before the others."""
    prefix: int
    """P."""
    grid: tuple[int, int]
    """Rows and columns of the patch tokens."""
    cells: Cells
    """Where the patches lie."""
    logits: Tensor
    """(B, K), of the head that reads the class token."""


def class_maps_of(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Cells]:
    """Return class maps (B, K, h, w), the head's bias (K,), and where the maps' cells lie.

    A map's mean plus the bias is the logit: of a Conformer's convolution head, or of another model whose head
    is one Linear layer on the mean of its last feature map.

    Raises:
        UserError: The model has no such head.
    """
    if isinstance(model, Conformer):
        maps = model.class_maps(images).conv
        assert isinstance(model.conv_head, nn.Linear)  # class_maps needs it
        return maps, model.conv_head.bias, map_cells(maps, images)
    network: Any = model
    features = network.forward_features(images)
    head = network.get_classifier()
    refusal = UserError(
        f"{type(model).__name__} has no exact class maps, for which the head must be one Linear layer on the "
        "mean of a feature map; use gradcam or occlusion"
    )
    if not isinstance(head, nn.Linear) or features.ndim != 4 or features.shape[1] != head.in_features:
        raise refusal
    maps = torch.einsum("bchw,kc->bkhw", features, head.weight)
    bias = head.weight.new_zeros(head.out_features) if head.bias is None else head.bias
    logits = network.forward_head(features)
    if not torch.allclose(maps.mean((2, 3)) + bias, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise refusal  # another pooling, or layers in between
    return maps, bias, map_cells(maps, images)


def map_cells(maps: Tensor, images: Tensor) -> Cells:
    """Return where the cells of a feature map (B, C, h, w) lie: its stride is a power of two."""
    stride = 2 ** math.ceil(math.log2(max(images.shape[2] / maps.shape[2], images.shape[3] / maps.shape[3])))
    return Cells(stride, (stride - 1) / 2)


def patch_cells(patch_size: int) -> Cells:
    """Return where the patches lie."""
    return Cells(patch_size, (patch_size - 1) / 2)


def attention_of(model: nn.Module, images: Tensor) -> Attention:
    """Run the model and return the attention of every block.

    Raises:
        UserError: The model is neither a Conformer nor a ViT of timm's with a class token.
    """
    height, width = images.shape[2:]
    if isinstance(model, Conformer):
        inside = model.forward_attention(images, return_features=True)
        assert isinstance(inside, AttentionFeatures)
        patch = model.config.patch_size
        grid = -(-height // patch), -(-width // patch)
        return Attention(
            inside.attention, 1, grid, patch_cells(patch), model.branch_logits(inside.features).trans
        )
    network: Any = model
    prefix = getattr(model, "num_prefix_tokens", 0)
    if prefix < 1 or getattr(network, "global_pool", "") != "token" or not hasattr(model, "blocks"):
        raise UserError(
            f"{type(model).__name__} has no class token that attends to patches; use gradcam or occlusion"
        )
    recorder, weights_of = recording_attention(model, "attn")
    logits = recorder(images)
    patch, other = network.patch_embed.patch_size
    assert patch == other
    weights = [weights_of(number) for number in range(1, len(network.blocks) + 1)]
    return Attention(weights, prefix, (height // patch, width // patch), patch_cells(patch), logits)


@torch.no_grad()
def cam_module(model: nn.Module, images: Tensor) -> nn.Module | None:
    """Return the module whose output is the last feature map; None leaves the choice to the library.

    Raises:
        UserError: A model that ends in no map (B, C, h, w); the library would take anything for one.
    """
    if isinstance(model, Conformer):
        return model.cam_layer()
    network: Any = model
    features = network.forward_features(images[:1])
    if features.ndim != 4 or features.shape[1] != network.num_features:
        raise UserError(f"{type(model).__name__} ends in no feature map; use occlusion, or rollout for a ViT")
    levels = getattr(network, "feature_info", None)
    name = levels[-1].get("module") if isinstance(levels, list) and levels else None
    return dict(model.named_modules()).get(str(name))
