"""Attention rolled out over all blocks: what reaches the class token, from which patches.

Both methods follow the transformer branch alone. What FCUDown adds to the tokens in every block, from the
feature map of the other branch, is not in them (docs/explain.md).

Shapes: B images, T classes asked for per image, P prefix tokens, N patch tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conformer_vision.explain.base import Activation
from conformer_vision.explain.networks import Attention, attention_of


@torch.no_grad()
def rollout(model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None) -> Activation:
    """Multiply the attention of all blocks (Abnar and Zuidema 2020); it is the same for every class.

    In every block half of a token stays as it is, for the shortcut, and half is what it attends to.
    """
    inside = attention_of(model, images)
    joint = _identity(inside)
    for weights in inside.weights:
        joint = (weights.mean(1) @ joint + joint) / 2
    maps = _of_class_token(joint, inside)[:, None].expand(-1, classes.shape[1], -1, -1)
    return Activation(maps, inside.cells, inside.logits.gather(1, classes))


def gradient_rollout(
    model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None
) -> Activation:
    """Roll out the attention that raises the class's logit (Chefer et al. 2021b, equations 5 and 6).

    Attention times the gradient of the transformer head's logit, its positive part averaged over the heads.
    One backward pass per class.
    """
    # The gradient must reach the attention, whatever the caller froze or switched off.
    with torch.enable_grad():
        inside = attention_of(model, images.clone().requires_grad_())
        maps = []
        for column in classes.unbind(1):
            # In eval mode no image touches another's logit, so the sum has the gradients of all.
            total = inside.logits.gather(1, column[:, None]).sum()
            gradients = torch.autograd.grad(total, inside.weights, retain_graph=True)
            maps.append(_relevance(inside, gradients))
    return Activation(torch.stack(maps, 1), inside.cells, inside.logits.detach().gather(1, classes))


@torch.no_grad()
def _relevance(inside: Attention, gradients: Sequence[Tensor]) -> Tensor:
    relevance = _identity(inside)
    for weights, gradient in zip(inside.weights, gradients, strict=True):
        relevance = relevance + (weights * gradient).clamp(min=0).mean(1) @ relevance
    return _of_class_token(relevance, inside)


def _identity(inside: Attention) -> Tensor:
    """Return (B, P + N, P + N): at first every token holds itself."""
    first = inside.weights[0]
    return torch.eye(first.shape[-1]).to(first).expand(len(first), -1, -1)


def _of_class_token(joint: Tensor, inside: Attention) -> Tensor:
    """Return the class token's row over the patches, as maps (B, rows, columns)."""
    row: Tensor = joint[:, 0, inside.prefix :].unflatten(1, inside.grid)
    return row
