"""From logits to probabilities, and from these to what an image shows: one class, or any number of them."""

from __future__ import annotations

import torch
from torch import Tensor

from conformer_vision.inference.runtimes import FUSED
from conformer_vision.spec import ModelSpec


def to_probabilities(logits: Tensor, spec: ModelSpec) -> Tensor:
    """Turn logits (..., K) of a model into probabilities: of one class among all, or of each by itself."""
    return logits.sigmoid() if spec.multilabel else logits.softmax(dim=-1)


def head_probabilities(logits: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Turn logits (B, K) into probabilities by head; those of ``fused`` are at the model's temperature."""
    return {
        head: to_probabilities(values / spec.temperature if head == FUSED else values, spec)
        for head, values in logits.items()
    }


def is_present(probabilities: Tensor, spec: ModelSpec) -> Tensor:
    """Tell which classes images have, by the probabilities (..., K) of the prediction.

    Of a model of one label per image it is the most probable class.
    """
    if not spec.multilabel:
        best = probabilities.argmax(dim=-1, keepdim=True)
        return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, best, True)
    thresholds = torch.tensor(spec.class_thresholds, dtype=torch.float64, device=probabilities.device)
    return probabilities >= thresholds
