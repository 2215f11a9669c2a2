"""A finer last map of a trained network, with the weights that it has."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from conformer_vision.errors import UserError, option
from conformer_vision.models import Conformer
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import build_empty

STRIDES = (32, 16, 8)
_NAME = "output_stride"


def with_output_stride(model: nn.Module, spec: ModelSpec, stride: int) -> tuple[nn.Module, ModelSpec]:
    """Return a network with the same weights and another output stride, and its specification.

    Where a halving falls away, the convolutions behind it are dilated, so that each sees what it saw.

    Args:
        model: A Conformer, folded or not, or another timm model that takes ``output_stride``.
        spec: Its specification.
        stride: Largest reduction of its map: 32, 16 or 8.

    Raises:
        UserError: The model takes no such stride, or has it already.
    """
    if stride not in STRIDES:
        raise UserError(f"{option(_NAME, stride)}: use 32, 16 or 8")
    changed = replace(spec, model_kwargs={**spec.model_kwargs, _NAME: stride})
    try:
        other = build_empty(changed)
    except UserError as error:
        raise UserError(f"{option(_NAME, stride)}: {spec.model} cannot take it; leave it out") from error
    own = _last_reduction(model, spec)
    if _last_reduction(other, changed) == own:
        finer = next((each for each in STRIDES if each < own), None)
        remedy = "leave it out" if finer is None else f"leave it out, or give {finer}"
        raise UserError(
            f"{option(_NAME, stride)} changes nothing: the last map of this {spec.model} is 1/{own} of the "
            f"image already; {remedy}"
        )
    other.load_state_dict(model.state_dict(), assign=True)
    other.pretrained_cfg = other.default_cfg = model.pretrained_cfg
    return other.eval(), changed


def _last_reduction(model: nn.Module, spec: ModelSpec) -> int:
    """Return how many pixels of the image's edge a cell of the last map covers."""
    if isinstance(model, Conformer):
        return model.config.reduction(3)
    shaped = copy.deepcopy(model).to("meta")
    with torch.no_grad():
        features: torch.Tensor = shaped.forward_features(torch.zeros(1, *spec.input_size, device="meta"))  # type: ignore[operator]
    return round(spec.input_size[1] / features.shape[2])
