"""Fit to validation images when an answer is unsure; `runtime.unsure` has the signals and what they mean.

Shapes: N validation images, K classes, F pooled features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from conformer_vision.class_means import ClassMeans, normalized
from conformer_vision.runtime.base import Array, Outputs
from conformer_vision.runtime.unsure import RULES, energy
from conformer_vision.thresholds import RejectRule, SortedScores

MIN_IMAGES = 50
"""With fewer validation images, thresholds would say more about chance than about the model."""
_LEAST_SPREAD = 1e-9


class FittedRules(NamedTuple):
    """What `fit_rules` found."""

    rules: tuple[RejectRule, ...]
    """Empty without a rule, for the reason in ``note``."""
    class_means: ClassMeans | None
    note: str | None
    signals: dict[str, Array]
    """Those (N,) of the validation images that the first rule adds up."""


def fit_rules(outputs: Outputs, labels: Array, *, classes: int) -> FittedRules:
    """Fit the reject rules to validation images.

    Every image is compared with class means that it is not part of (leave one out), as a new image will be.

    Args:
        outputs: Of N images.
        labels: (N,) int64, their classes.
        classes: Number of the model's classes.
    """
    if (note := why_not(labels)) is not None:
        return FittedRules((), None, note, {})
    signals = {"energy": energy(outputs, None)}
    class_means = None
    if outputs.features is not None:
        features = outputs.features.astype(np.float64)
        class_means = ClassMeans(_means(features, labels, classes).astype(np.float16))
        signals["similarity"] = similarity_to_others(features, labels, classes)
    possible = [names for names in RULES if set(names) <= signals.keys()]
    rules = [_fit({name: signals[name] for name in names}) for names in possible]
    found = tuple(rule for rule in rules if rule is not None)
    if not found:
        return FittedRules((), None, "all validation images look alike to the network", {})
    return FittedRules(found, class_means, None, {name: signals[name] for name in found[0].signals})


def why_not(labels: Array) -> str | None:
    """Return why nothing can be fitted to images of these labels, or None."""
    if len(labels) < MIN_IMAGES:
        return (
            f"{len(labels)} validation images are too few to say when an answer is unsure"
            f" ({MIN_IMAGES} are needed)"
        )
    return None


def _fit(signals: dict[str, Array]) -> RejectRule | None:
    """Fit a rule to the signals (N,) of the validation images; None if one of them tells no two apart."""
    scales = {name: (float(values.mean()), float(values.std(ddof=1))) for name, values in signals.items()}
    if not all(math.isfinite(mean) and spread > _LEAST_SPREAD for mean, spread in scales.values()):
        return None
    scores: Array = np.sum(
        [(signals[name] - mean) / spread for name, (mean, spread) in scales.items()], axis=0
    )
    return RejectRule(scales, SortedScores.of(scores.tolist()))


def _means(features: Array, labels: Array, classes: int) -> Array:
    """Return the mean features (K, F) of every class; zeros for a class without images."""
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    found: Array = sums / np.maximum(np.bincount(labels, minlength=classes), 1)[:, None]
    return found


def similarity_to_others(features: Array, labels: Array, classes: int) -> Array:
    """Return the cosine (N,) to the nearest class mean, that of an image's own class being without it."""
    means, counts = _means(features, labels, classes), np.bincount(labels, minlength=classes)
    cosines = normalized(features) @ normalized(means).T
    count = counts[labels][:, None]
    without = (means[labels] * count - features) / np.maximum(count - 1, 1)
    own = (normalized(features) * normalized(without)).sum(axis=1)
    np.put_along_axis(cosines, labels[:, None], own[:, None], axis=1)
    found: Array = cosines.max(axis=1)
    return found
