"""When an answer is unsure: signals that an image shows none of the classes, and what they add up to.

docs/unsure.md compares the signals; benchmarks/unknown_images.py evaluates them.

Shapes: B images, K classes, F pooled features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError
from conformer_vision.thresholds import RejectRule, Thresholds, check_share

from .base import FUSED, Array, Outputs

HEADS_DIFFER = "the two heads disagree"


class Signal(NamedTuple):
    """A number per image that is lower for images of other things."""

    compute: Callable[[Outputs, ClassMeans | None], Array]
    """(B,) float64."""
    reason: str
    """What it means if it is low."""
    needs_features: bool = False


def energy(outputs: Outputs, class_means: ClassMeans | None) -> Array:
    """Compute the negative energy of the prediction's logits: the logarithm of the sum of their exponentials.

    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    """
    logits = outputs.logits[FUSED].astype(np.float64)
    highest = logits.max(axis=1)
    with np.errstate(invalid="ignore"):  # logits that are not finite; their answer is an error
        found: Array = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    return found


def similarity(outputs: Outputs, class_means: ClassMeans | None) -> Array:
    """Compute the cosine of the pooled features to those of the nearest class.

    A Conformer's are the features of both heads, one behind the other. Techapanurak et al., "Hyperparameter-
    Free Out-of-Distribution Detection Using Cosine Similarity", ACCV 2020, take the weights of the last
    layer; a class mean is known for any network.
    """
    assert outputs.features is not None and class_means is not None
    return class_means.similarity(outputs.features.astype(np.float64))


SIGNALS = {
    "energy": Signal(energy, "low confidence"),
    "similarity": Signal(similarity, "unlike the training images", needs_features=True),
}
RULES = (("energy", "similarity"), ("energy",))
"""Signals that are added up. The first of a model's rules that can be computed holds: an export gives no
pooled features, so its answers are judged by the second."""


class Judge:
    """Says whether the answers of a model are unsure, and why.

    Args:
        thresholds: Of the model.
        class_means: Of the model; None for an export.
        coverage: Share of images like the validation images that is to be answered; the model's own by
            default.

    Raises:
        UserError: The coverage is not between 0 and 1.
    """

    def __init__(
        self, thresholds: Thresholds, class_means: ClassMeans | None, *, coverage: float | None = None
    ) -> None:
        if coverage is not None:
            check_share("coverage", coverage)
        self.class_means = class_means
        self.rule = find_rule(thresholds, features=class_means is not None)
        self.coverage = thresholds.coverage if coverage is None else coverage
        self.threshold = self.rule.threshold(self.coverage)

    def score(self, outputs: Outputs) -> Array:
        """Compute the score of every answer (B,): the lower, the less sure."""
        return sum_up(self.rule, self._signals(outputs))

    def __call__(self, outputs: Outputs) -> list[str | None]:
        """Return for every image why its answer is unsure, or None where it is not."""
        return reasons(self.rule, self._signals(outputs), outputs.logits, threshold=self.threshold)

    def _signals(self, outputs: Outputs) -> dict[str, Array]:
        return {name: SIGNALS[name].compute(outputs, self.class_means) for name in self.rule.signals}


def find_rule(thresholds: Thresholds, *, features: bool) -> RejectRule:
    """Return the first rule whose signals are known and can be computed.

    Raises:
        UserError: There is none; a later version wrote the file.
    """
    for rule in thresholds.reject:
        if all(name in SIGNALS and (features or not SIGNALS[name].needs_features) for name in rule.signals):
            return rule
    names = ", ".join(sorted({name for rule in thresholds.reject for name in rule.signals}))
    raise UserError(f"the model's reject rules need what is unknown here ({names}); update conformer-vision")


def standardized(rule: RejectRule, signals: dict[str, Array]) -> dict[str, Array]:
    """Return the signals in standard deviations from their mean on the validation images."""
    return {name: (signals[name] - mean) / spread for name, (mean, spread) in rule.signals.items()}


def sum_up(rule: RejectRule, signals: dict[str, Array]) -> Array:
    """Return the score (B,) of a rule."""
    found: Array = np.sum(list(standardized(rule, signals).values()), axis=0)
    return found


def reasons(
    rule: RejectRule, signals: dict[str, Array], logits: dict[str, Array], *, threshold: float
) -> list[str | None]:
    """Return for each of B images why its answer is unsure, or None where it is not.

    Args:
        rule: Adds up the signals.
        signals: Of the images, (B,) each.
        logits: By head, (B, K) each.
        threshold: An answer whose score is below it is unsure.
    """
    unsure = (~(sum_up(rule, signals) >= threshold)).tolist()  # also what is not a number
    lowest = np.argmin(list(standardized(rule, signals).values()), axis=0).tolist()
    differ = heads_differ(logits).tolist()
    named = [SIGNALS[name].reason for name in signals]
    return [
        None if not no else f"{named[low]}; {HEADS_DIFFER}" if two else named[low]
        for no, low, two in zip(unsure, lowest, differ, strict=True)
    ]


def heads_differ(logits: dict[str, Array]) -> Array:
    """Tell for every image (B,) whether the heads' first choices differ; never with one head."""
    choices = [values.argmax(axis=1) for head, values in logits.items() if head != FUSED]
    if len(choices) < 2:
        return np.zeros(len(logits[FUSED]), dtype=bool)
    differ: Array = choices[0] != choices[1]
    return differ
