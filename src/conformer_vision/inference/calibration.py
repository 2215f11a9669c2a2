"""Calibration: does a probability of 80 % mean 80 % right answers, and which temperature makes it so?

Temperature scaling (Guo et al., ICML 2017) divides the logits by one number T, which leaves the predicted
classes as they are. T minimises the negative log-likelihood (NLL), which is convex in 1/T.

Where an image has any number of labels, these are (N, K) bool instead of (N,) numbers of classes. NLL is then
binary cross-entropy, the mean over images and classes. The bins hold the probabilities of all classes, and
the share of right answers is that of the images that have the class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

BINS = 15
LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature."""
MIN_IMAGES = 50
"""With fewer, a fitted temperature would say more about chance than about the model."""


@dataclass(frozen=True)
class Bin:
    """The images whose highest probability is between two bounds."""

    low: float
    high: float
    count: int
    confidence: float
    """Their mean probability; 0 without images."""
    accuracy: float
    """Share of right answers; 0 without images."""


@dataclass(frozen=True)
class Reliability:
    """How well the probabilities agree with the shares of right answers."""

    nll: float
    """Mean negative log-likelihood of the true class, in nats."""
    ece: float
    """Expected calibration error: mean gap of the bins, weighted by their images; in [0, 1]."""
    bins: tuple[Bin, ...]
    """`BINS` bins of equal width over [0, 1]."""


@dataclass(frozen=True)
class Calibration:
    """The temperature of a model, and its effect."""

    temperature: float
    """Fitted on all images; 1 if it could not be fitted."""
    before: Reliability
    """At temperature 1."""
    after: Reliability | None
    """Each half of the images at the temperature fitted on the other half; None without a fit."""
    note: str | None
    """Why the temperature stayed 1, or that it is at a bound."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature in [0.05, 20] with the lowest NLL.

    Args:
        logits: (N, K), finite.
        labels: (N,), true classes, or (N, K).
    """
    found = minimize_scalar(
        lambda scale: _nll(logits * scale, labels),
        bounds=(1 / HIGHEST, 1 / LOWEST),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return min(max(1 / float(found.x), LOWEST), HIGHEST)


def calibrate(logits: Tensor, labels: Tensor, *, seed: int = 0) -> Calibration:
    """Fit the temperature, and evaluate its effect on images that it was not fitted on.

    For the evaluation the images are split into two halves with equal shares of right answers; each is scaled
    by the temperature of the other (two-fold cross-fitting).

    Args:
        logits: (N, K) of the prediction, finite; N at least 1.
        labels: (N,), true classes, or (N, K).
        seed: Seed of the halves.
    """
    before = reliability(logits, labels, torch.ones(len(labels)))
    right = (logits > 0) == labels if labels.ndim == 2 else logits.argmax(dim=1) == labels
    if (note := _why_not(right, labels)) is not None:
        return Calibration(1.0, before, None, note)
    temperatures = torch.ones(len(labels))
    halves = (KFold if labels.ndim == 2 else StratifiedKFold)(2, shuffle=True, random_state=seed)
    for fitted, held_out in halves.split(labels, right):
        temperatures[held_out] = fit_temperature(logits[fitted], labels[fitted])
    temperature = fit_temperature(logits, labels)
    bound = next((b for b in (LOWEST, HIGHEST) if math.isclose(temperature, b, rel_tol=1e-3)), None)
    note = None if bound is None else f"the temperature is at its bound of {bound:g}"
    return Calibration(temperature, before, reliability(logits, labels, temperatures), note)


def reliability(logits: Tensor, labels: Tensor, temperatures: Tensor) -> Reliability:
    """Compute NLL, ECE and the bins of the reliability diagram.

    Args:
        logits: (N, K).
        labels: (N,), true classes, or (N, K).
        temperatures: (N,), one per image.
    """
    scaled = logits / temperatures[:, None]
    if labels.ndim == 2:
        confidence, right = scaled.sigmoid().flatten(), labels.flatten()
    else:
        confidence, predicted = scaled.softmax(dim=1).max(dim=1)
        right = predicted == labels
    bins = _bins(confidence, right)
    ece = sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / len(confidence)
    return Reliability(_nll(scaled, labels), ece, bins)


def bins_of(confidences: Tensor) -> Tensor:
    """Return the number of each confidence's bin, (N,) as given; 1 is in the last one, as in torchmetrics."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidences.dtype)
    return (torch.bucketize(confidences, edges, right=True) - 1).clamp(max=BINS - 1)


def _why_not(right: Tensor, labels: Tensor) -> str | None:
    """Return why no temperature can be fitted, or None."""
    images, answers, wrong = len(right), right.numel(), int((~right).sum())
    if images < MIN_IMAGES:
        return f"{images} images are too few to fit a temperature ({MIN_IMAGES} are needed)"
    if labels.ndim == 1 and len(labels.unique()) == 1:
        return "all images are of one class; a temperature fitted to them would not hold for others"
    if wrong < 2 or answers - wrong < 2:
        return f"{wrong:,} of {answers:,} answers are wrong; fitting needs two right and two wrong ones"
    return None


def _nll(logits: Tensor, labels: Tensor) -> float:
    if labels.ndim == 2:
        return float(binary_cross_entropy_with_logits(logits.double(), labels.double()))
    return float(cross_entropy(logits, labels, reduction="none").double().mean())


def _bins(confidences: Tensor, right: Tensor) -> tuple[Bin, ...]:
    place = bins_of(confidences)
    count = torch.bincount(place, minlength=BINS)
    filled = count.clamp(min=1)
    confidence = torch.bincount(place, weights=confidences.double(), minlength=BINS) / filled
    accuracy = torch.bincount(place, weights=right.double(), minlength=BINS) / filled
    bounds = torch.linspace(0, 1, BINS + 1).tolist()
    return tuple(
        Bin(bounds[i], bounds[i + 1], int(count[i]), float(confidence[i]), float(accuracy[i]))
        for i in range(BINS)
    )
