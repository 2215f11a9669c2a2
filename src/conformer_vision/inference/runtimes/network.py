"""What a network of PyTorch answers, as tensors, and the device that it is on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conformer_vision.errors import first_line
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.models.ensemble import mean_of
from conformer_vision.runtime.base import FUSED, unusable


class Answers(NamedTuple):
    """What a network gives for a batch of images; `Outputs` are the same as arrays."""

    logits: dict[str, Tensor]
    """Head -> (B, K)."""
    features: Tensor | None
    """(B, F): the pooled features; None for an ensemble, which does not give them."""


def heads(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the logits (B, K) of every head of a model, the prediction last."""
    if isinstance(model, Ensemble):
        parts = [heads(member, images) for member in model.members]
        return {head: mean_of([part[head] for part in parts]) for head in parts[0]}
    if not isinstance(model, Conformer):
        return {FUSED: model(images)}
    branches = model.forward_branches(images)
    return {**branches._asdict(), FUSED: model.fuse_logits(branches)}


def heads_and_features(model: nn.Module, images: Tensor) -> Answers:
    """Compute the logits of every head of a model of timm, the prediction last, and its pooled features."""
    if isinstance(model, Ensemble):
        return Answers(heads(model, images), None)  # each member has features of its own
    whole: Any = model
    features = whole.forward_features(images)
    pooled = whole.forward_head(features, pre_logits=True)
    if not isinstance(model, Conformer):
        return Answers({FUSED: whole.forward_head(features)}, pooled if pooled.ndim == 2 else None)
    branches = model.branch_logits(features)
    return Answers({**branches._asdict(), FUSED: model.fuse_logits(branches)}, pooled)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    try:
        wanted = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
    except RuntimeError as error:
        raise unusable(device, "PyTorch knows no such device") from error
    if wanted.type == "meta":
        raise unusable(device, "it computes nothing")
    try:
        torch.empty(0, device=wanted)
    except NotImplementedError as error:  # torch lists all that it was built with
        raise unusable(device, "this PyTorch was built without it") from error
    except (ImportError, RuntimeError, AssertionError) as error:
        raise unusable(device, first_line(error).partition(". ")[0]) from error
    return wanted
