"""Freeze parts of a Conformer."""

from __future__ import annotations

from typing import Literal

from torch import nn

from .conformer import Conformer

Branch = Literal["conv", "trans"]
_BRANCH_PARTS = {"conv": ("bottleneck", "fusion"), "trans": ("transformer",)}


def freeze(model: Conformer, *, blocks: int = 0, branch: Branch | None = None) -> None:
    """Stop training the stem and the first blocks, or a branch.

    Call `hold_frozen` after every ``model.train()`` to keep frozen BatchNorms and stochastic depth in
    evaluation mode.

    Args:
        model: Changed in place.
        blocks: Freeze the stem, the patch embedding, the class token and this many of the first blocks.
        branch: Freeze the stem and every bottleneck (``conv``), or the patch embedding, the class
            token and every transformer block (``trans``). The couplings, the last norm
            and the heads keep learning.

    Raises:
        ValueError: There are fewer blocks.
    """
    if blocks > len(model.blocks):
        raise ValueError(f"blocks {blocks}: the model has {len(model.blocks)}")
    for part in _parts(model, blocks, branch):
        part.requires_grad_(False)
    if blocks or branch == "trans":
        model.cls_token.requires_grad_(False)


def freeze_trunk(model: nn.Module) -> list[nn.Parameter]:
    """Stop training everything but the classifier heads of any timm model, and put it into evaluation mode.

    Returns:
        The parameters that learned before, to train them again later.

    Raises:
        ValueError: The model does not say what its classifier is, or has none.
    """
    get_classifier = getattr(model, "get_classifier", None)
    found = get_classifier() if callable(get_classifier) else None
    heads = [head for head in (found if isinstance(found, tuple | list) else [found]) if head is not None]
    kept = {id(parameter) for head in heads for parameter in head.parameters()}
    if not kept:
        raise ValueError("the model has no classifier heads")
    trunk = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in trunk:
        parameter.requires_grad_(False)
    hold_frozen(model)
    return trunk


def hold_frozen(model: nn.Module) -> None:
    """Put every module whose parameters are all frozen into evaluation mode."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _parts(model: Conformer, blocks: int, branch: Branch | None) -> list[nn.Module]:
    parts: list[nn.Module] = list(model.blocks[:blocks])
    if blocks or branch == "conv":
        parts.append(model.stem)
    if blocks or branch == "trans":
        parts.append(model.patch_embed)
    if branch is not None:
        names = _BRANCH_PARTS[branch]
        parts += [child for block in model.blocks for name, child in block.named_children() if name in names]
    return parts
