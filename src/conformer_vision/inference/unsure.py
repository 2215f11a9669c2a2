"""When an answer is unsure: signals that an image shows none of the classes, and what they add up to.

docs/unsure.md compares the signals; benchmarks/unknown_images.py evaluates them.

Shapes: B images, N validation images, K classes, F pooled features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError
from conformer_vision.inference.runtimes import FUSED, Outputs
from conformer_vision.thresholds import RejectRule, SortedScores, Thresholds, check_share

MIN_IMAGES = 50
"""With fewer validation images, thresholds would say more about chance than about the model."""
_LEAST_SPREAD = 1e-9
HEADS_DIFFER = "the two heads disagree"


class Signal(NamedTuple):
    """A number per image that is lower for images of other things."""

    compute: Callable[[Outputs, ClassMeans | None], Tensor]
    """(B,) float64, on the CPU."""
    reason: str
    """What it means if it is low."""
    needs_features: bool = False


def energy(outputs: Outputs, class_means: ClassMeans | None) -> Tensor:
    """Compute the negative energy of the prediction's logits: the logarithm of the sum of their exponentials.

    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    """
    return outputs.logits[FUSED].double().logsumexp(dim=1).cpu()


def similarity(outputs: Outputs, class_means: ClassMeans | None) -> Tensor:
    """Compute the cosine of the pooled features to those of the nearest class.

    A Conformer's are the features of both heads, one behind the other. Techapanurak et al., "Hyperparameter-
    Free Out-of-Distribution Detection Using Cosine Similarity", ACCV 2020, take the weights of the last
    layer; a class mean is known for any network.
    """
    assert outputs.features is not None and class_means is not None
    return class_means.similarity(outputs.features.double()).cpu()


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

    def score(self, outputs: Outputs) -> Tensor:
        """Compute the score of every answer (B,): the lower, the less sure."""
        return sum_up(self.rule, self._signals(outputs))

    def __call__(self, outputs: Outputs) -> list[str | None]:
        """Return for every image why its answer is unsure, or None where it is not."""
        return reasons(self.rule, self._signals(outputs), outputs.logits, threshold=self.threshold)

    def _signals(self, outputs: Outputs) -> dict[str, Tensor]:
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


def standardized(rule: RejectRule, signals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the signals in standard deviations from their mean on the validation images."""
    return {name: (signals[name] - mean) / spread for name, (mean, spread) in rule.signals.items()}


def sum_up(rule: RejectRule, signals: dict[str, Tensor]) -> Tensor:
    """Return the score (B,) of a rule."""
    return torch.stack(list(standardized(rule, signals).values())).sum(dim=0)


def reasons(
    rule: RejectRule, signals: dict[str, Tensor], logits: dict[str, Tensor], *, threshold: float
) -> list[str | None]:
    """Return for each of B images why its answer is unsure, or None where it is not.

    Args:
        rule: Adds up the signals.
        signals: Of the images, (B,) each.
        logits: By head, (B, K) each.
        threshold: An answer whose score is below it is unsure.
    """
    unsure = (~(sum_up(rule, signals) >= threshold)).tolist()  # also what is not a number
    lowest = torch.stack(list(standardized(rule, signals).values())).argmin(dim=0).tolist()
    differ = heads_differ(logits).tolist()
    named = [SIGNALS[name].reason for name in signals]
    return [
        None if not no else f"{named[low]}; {HEADS_DIFFER}" if two else named[low]
        for no, low, two in zip(unsure, lowest, differ, strict=True)
    ]


def heads_differ(logits: dict[str, Tensor]) -> Tensor:
    """Tell for every image (B,) whether the heads' first choices differ; never with one head."""
    choices = [values.argmax(dim=1) for head, values in logits.items() if head != FUSED]
    if len(choices) < 2:
        return torch.zeros(len(logits[FUSED]), dtype=torch.bool)
    return choices[0] != choices[1]


class FittedRules(NamedTuple):
    """What `fit_rules` found."""

    rules: tuple[RejectRule, ...]
    """Empty without a rule, for the reason in ``note``."""
    class_means: ClassMeans | None
    note: str | None
    signals: dict[str, Tensor]
    """Those (N,) of the validation images that the first rule adds up."""


def fit_rules(outputs: Outputs, labels: Tensor, *, classes: int) -> FittedRules:
    """Fit the reject rules to validation images.

    Every image is compared with class means that it is not part of (leave one out), as a new image will be.

    Args:
        outputs: Of N images.
        labels: (N,) int64, their classes.
        classes: Number of the model's classes.
    """
    if (note := why_not(labels)) is not None:
        return FittedRules((), None, note, {})
    labels = labels.cpu()
    signals = {"energy": energy(outputs, None)}
    class_means = None
    if outputs.features is not None:
        features = outputs.features.double().cpu()
        class_means = ClassMeans(_means(features, labels, classes).half())
        signals["similarity"] = similarity_to_others(features, labels, classes)
    possible = [names for names in RULES if set(names) <= signals.keys()]
    rules = [_fit({name: signals[name] for name in names}) for names in possible]
    found = tuple(rule for rule in rules if rule is not None)
    if not found:
        return FittedRules((), None, "all validation images look alike to the network", {})
    return FittedRules(found, class_means, None, {name: signals[name] for name in found[0].signals})


def why_not(labels: Tensor) -> str | None:
    """Return why nothing can be fitted to images of these labels, or None."""
    if len(labels) < MIN_IMAGES:
        return (
            f"{len(labels)} validation images are too few to say when an answer is unsure"
            f" ({MIN_IMAGES} are needed)"
        )
    return None


def _fit(signals: dict[str, Tensor]) -> RejectRule | None:
    """Fit a rule to the signals (N,) of the validation images; None if one of them tells no two apart."""
    scales = {name: (float(values.mean()), float(values.std())) for name, values in signals.items()}
    if not all(math.isfinite(mean) and spread > _LEAST_SPREAD for mean, spread in scales.values()):
        return None
    scores = torch.stack([(signals[name] - mean) / spread for name, (mean, spread) in scales.items()])
    return RejectRule(scales, SortedScores.of(scores.sum(dim=0).tolist()))


def _means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean features (K, F) of every class; zeros for a class without images."""
    sums = torch.zeros(classes, features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    return sums / torch.bincount(labels, minlength=classes).clamp(min=1)[:, None]


def similarity_to_others(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the cosine (N,) to the nearest class mean, that of an image's own class being without it."""
    means, counts = _means(features, labels, classes), torch.bincount(labels, minlength=classes)
    cosines = F.normalize(features, dim=1) @ F.normalize(means, dim=1).T
    count = counts[labels][:, None]
    without = (means[labels] * count - features) / (count - 1).clamp(min=1)
    own = (F.normalize(features, dim=1) * F.normalize(without, dim=1)).sum(dim=1)
    return cosines.scatter(1, labels[:, None], own[:, None]).max(dim=1).values
