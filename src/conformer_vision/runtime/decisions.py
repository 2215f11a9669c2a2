"""From logits to probabilities, and from these to what an image shows: one class, or any number of them."""

from __future__ import annotations

import numpy as np

from conformer_vision.spec import ModelSpec

from .base import FUSED, Array


def softmax(logits: Array) -> Array:
    """Return probabilities (..., K) that sum to 1; where a logit is not finite they are not numbers."""
    with np.errstate(invalid="ignore"):
        shares: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(logits: Array) -> Array:
    """Return the probability of each class by itself."""
    small = np.exp(-np.abs(logits))  # which does not overflow
    found: Array = np.where(logits >= 0, np.ones_like(small), small) / (1 + small)
    return found


def to_probabilities(logits: Array, spec: ModelSpec) -> Array:
    """Turn logits (..., K) of a model into probabilities: of one class among all, or of each by itself."""
    return sigmoid(logits) if spec.multilabel else softmax(logits)


def head_probabilities(logits: dict[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """Turn logits (B, K) into probabilities by head; those of ``fused`` are at the model's temperature."""
    return {
        head: to_probabilities(values / spec.temperature if head == FUSED else values, spec)
        for head, values in logits.items()
    }


def is_present(probabilities: Array, spec: ModelSpec) -> Array:
    """Tell which classes images have, by the probabilities (..., K) of the prediction.

    Of a model of one label per image it is the most probable class.
    """
    if not spec.multilabel:
        return first_of(probabilities)
    present: Array = probabilities >= np.array(spec.class_thresholds)
    return present


def first_of(values: Array) -> Array:
    """Mark the highest of the values (..., K), of equal ones the first, in an array of bool."""
    chosen: Array = np.arange(values.shape[-1]) == values.argmax(axis=-1, keepdims=True)
    return chosen
