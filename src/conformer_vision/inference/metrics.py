"""The figures of a head, each with its interval: one field of `HeadFigures` or `ClassFigures` per metric.

A metric is a function of weighted sums over the images. With weights of one it gives the figure, with those
of resamples the figure's interval, so both have one definition. The definitions are those of scikit-learn and
torchmetrics, which take one set of weights at a time and would need hours for a thousand resamples. The tests
compare every figure with theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from conformer_vision.inference.answers import Answers, HeadAnswers
from conformer_vision.inference.calibration import BINS, bins_of
from conformer_vision.inference.intervals import (
    TOP5_FROM,
    Array,
    Figure,
    Resamples,
    figure,
    percentiles,
    wilson,
)
from conformer_vision.inference.ranking import rank


class Sums:
    """Weighted sums over the N images that one head has answered, for B sets of weights.

    Args:
        head: The answers.
        answers: What they answer.
        classes: The C classes that have images.
        weights: (N, B).
    """

    def __init__(self, head: HeadAnswers, answers: Answers, classes: Array, weights: Array) -> None:
        self._head = head
        self._answers = answers
        self._classes = classes
        self._weights = weights
        self.total = weights.sum(axis=0)
        """(B,)."""

    def mean(self, values: Array) -> Array:
        """Return the weighted means (B,) of values (N,)."""
        means: Array = values.astype(self._weights.dtype) @ self._weights / self.total
        return means

    def within(self, rank: int) -> Array:
        """Return the share (B,) of images whose class is among the first ``rank``."""
        return self.mean(self._head.rank < rank)

    def by(self, places: Array, length: int, values: Array | None = None) -> Array:
        """Return the weighted sums (length, B) of values (N,) by place; images at -1 are in none."""
        rows = np.flatnonzero(places >= 0)
        values = np.ones(len(places)) if values is None else values
        matrix = csr_matrix(
            (values[rows].astype(self._weights.dtype), (places[rows], rows)), shape=(length, len(places))
        )
        summed: Array = matrix @ self._weights
        return summed

    @cached_property
    def images(self) -> Array:
        """(C, B) of each class."""
        return self.by(self._places(self._answers.labels), len(self._classes))

    @cached_property
    def predicted(self) -> Array:
        """(C, B), images of any class that are predicted as this one."""
        return self.by(self._places(self._head.predicted), len(self._classes))

    @cached_property
    def right(self) -> Array:
        """(C, B), images of each class that are predicted as it."""
        places = self._places(self._answers.labels)
        return self.by(np.where(self._head.rank == 0, places, -1), len(self._classes))

    @cached_property
    def ranking(self) -> tuple[Array, Array]:
        """AUROC and average precision, (C, B) each, over the images whose logits are kept."""
        kept = self._answers.kept
        weights = self._weights if self._answers.whole else self._weights[kept]
        labels = self._answers.labels[kept]
        return rank(self._head.scores, labels, self._classes.tolist(), weights)

    @property
    def precision(self) -> Array:
        """(C, B): 0 for a class that is never predicted, as scikit-learn has it by default."""
        return np.where(self.images > 0, _divided(self.right, self.predicted, otherwise=0), np.nan)

    @property
    def recall(self) -> Array:
        """(C, B)."""
        return _divided(self.right, self.images)

    @property
    def f1(self) -> Array:
        """(C, B)."""
        return np.where(self.images > 0, _divided(2 * self.right, self.images + self.predicted), np.nan)

    @property
    def kappa(self) -> Array:
        """(B,)."""
        agreement = self.right.sum(axis=0) / self.total
        chance = (self.images * self.predicted).sum(axis=0) / self.total**2
        return _divided(agreement - chance, 1 - chance)

    @property
    def brier(self) -> Array:
        """(B,), the squared distance of the probabilities from the truth, summed over the classes."""
        return self.mean(self._head.squares - 2 * np.exp(self._head.log_likelihood) + 1)

    @property
    def log_loss(self) -> Array:
        """(B,), in nats."""
        return self.mean(-self._head.log_likelihood)

    @property
    def ece(self) -> Array:
        """(B,), over `BINS` bins of equal width."""
        places = bins_of(torch.from_numpy(self._head.confidence)).numpy()
        gaps = self._head.confidence.astype(float) - (self._head.rank == 0)
        total: Array = np.abs(self.by(places, BINS, gaps)).sum(axis=0) / self.total
        return total

    def _places(self, labels: Array) -> Array:
        """Return the row of each label among the classes, -1 for one of another class."""
        rows = np.minimum(np.searchsorted(self._classes, labels), len(self._classes) - 1)
        return np.where(self._classes[rows] == labels, rows, -1)


def _divided(over: Array, under: Array, *, otherwise: float = np.nan) -> Array:
    quotient: Array = np.divide(over, under, out=np.full(over.shape, otherwise, over.dtype), where=under > 0)
    return quotient


def _macro(values: Array) -> Array:
    """Return the mean (B,) over the classes of values (C, B) that are defined."""
    defined = np.isfinite(values)
    return _divided(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0).astype(values.dtype))


@dataclass(frozen=True)
class Metric:
    """How a figure is computed and shown."""

    title: str
    compute: Callable[[Sums], Array]
    """(B,), or (C, B) for a metric of every class; NaN where it is undefined."""
    percent: bool = True
    """Whether it is shown in percent."""
    lower: bool = False
    """Whether a lower figure is better."""
    share_of: Callable[[Sums], Array] | None = None
    """For a share of images: of how many."""
    biased: bool = False
    """Whether resamples give higher figures than the images; see `_intervals`."""
    name: str = ""
    """Its field in `HeadFigures` or `ClassFigures`."""

    def signed(self, difference: Figure, *, none: str = "-") -> str:
        """Write a difference of figures, as in ``+1.7 [-0.2, 3.1]``; see `text`."""
        return self.text(difference, none=none, sign="+")

    def text(self, figure: Figure, *, none: str = "-", sign: str = "") -> str:
        """Write a figure with its interval, as in ``91.7 [78.2, 97.1]``, of 100 for one in percent.

        Args:
            figure: The figure.
            none: Stands for one that is undefined.
            sign: ``+`` writes the sign of a positive figure too.
        """
        if figure.value is None:
            return none
        scale, digits = (100, (1, 1)) if self.percent else (1, (2 if sign else 3, 2))
        text = f"{scale * figure.value:{sign}.{digits[0]}f}"
        if figure.low is None or figure.high is None:
            return text
        return f"{text} [{scale * figure.low:.{digits[1]}f}, {scale * figure.high:.{digits[1]}f}]"


def _metric(title: str, compute: Callable[[Sums], Array], **options: Any) -> dict[str, Metric]:
    return {"metric": Metric(title, compute, **options)}


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one class that has images, against all others."""

    images: int
    precision: Figure = field(
        metadata=_metric("precision", lambda s: s.precision, share_of=lambda s: s.predicted)
    )
    """Share of the images predicted as the class that are of it; 0 if none is."""
    recall: Figure = field(metadata=_metric("recall", lambda s: s.recall, share_of=lambda s: s.images))
    """Share of the class's images that are predicted as it."""
    f1: Figure = field(metadata=_metric("F1", lambda s: s.f1))
    """Harmonic mean of precision and recall."""
    auroc: Figure = field(metadata=_metric("AUROC", lambda s: s.ranking[0]))
    """Chance that an image of the class has a higher probability of it than another image."""
    average_precision: Figure = field(metadata=_metric("average precision", lambda s: s.ranking[1]))
    """Mean precision over the class's images, by descending probability."""

    def of(self, metric: Metric) -> Figure:
        """Return the figure of one of `CLASS_METRICS`."""
        found: Figure = getattr(self, metric.name)
        return found


@dataclass(frozen=True)
class HeadFigures:
    """The figures of one head; macro means are over the classes that have images, with equal weights."""

    classes: dict[str, ClassFigures | None]
    """By class; None for a class without images."""
    top1: Figure = field(metadata=_metric("top-1", lambda s: s.within(1), share_of=lambda s: s.total))
    """Accuracy: share of images whose class has the highest probability."""
    top5: Figure = field(metadata=_metric("top-5", lambda s: s.within(5), share_of=lambda s: s.total))
    """Share of images whose class is among the five with the highest; undefined below `TOP5_FROM` classes."""
    balanced_accuracy: Figure = field(metadata=_metric("balanced acc.", lambda s: _macro(s.recall)))
    """Macro recall."""
    precision: Figure = field(metadata=_metric("precision", lambda s: _macro(s.precision)))
    """Macro precision."""
    f1: Figure = field(metadata=_metric("F1", lambda s: _macro(s.f1)))
    """Macro F1."""
    auroc: Figure = field(metadata=_metric("AUROC", lambda s: _macro(s.ranking[0])))
    """Macro area under the ROC curve, every class against the rest."""
    average_precision: Figure = field(metadata=_metric("mAP", lambda s: _macro(s.ranking[1])))
    """Macro average precision (mAP), every class against the rest."""
    kappa: Figure = field(metadata=_metric("kappa", lambda s: s.kappa, percent=False))
    """Cohen's kappa: agreement with the labels beyond chance."""
    brier: Figure = field(metadata=_metric("Brier score", lambda s: s.brier, percent=False, lower=True))
    """Squared distance of the probabilities from the truth, summed over the classes; in [0, 2]."""
    log_loss: Figure = field(metadata=_metric("log loss", lambda s: s.log_loss, percent=False, lower=True))
    """Mean negative log-likelihood of the true class, in nats."""
    ece: Figure = field(metadata=_metric("ECE", lambda s: s.ece, lower=True, biased=True))
    """Expected calibration error over 15 bins of equal width."""

    def of(self, metric: Metric) -> Figure:
        """Return the figure of one of `METRICS`."""
        found: Figure = getattr(self, metric.name)
        return found


def _metrics(of: type[Any]) -> tuple[Metric, ...]:
    return tuple(
        replace(each.metadata["metric"], name=each.name) for each in fields(of) if "metric" in each.metadata
    )


METRICS = _metrics(HeadFigures)
"""Of a head, in the order in which they are shown."""
CLASS_METRICS = _metrics(ClassFigures)
"""Of every class."""


def head_figures(answers: Answers, classes: Sequence[str], *, seed: int = 0) -> dict[str, HeadFigures]:
    """Compute the figures of every head.

    Args:
        answers: Of the heads, to at least one image; groups in it are resampled as a whole.
        classes: Names of the K classes.
        seed: Seed of the resamples, which are the same for all heads.
    """
    resamples = Resamples(len(answers.labels), groups=answers.groups, classes=len(classes), seed=seed)
    filled = np.unique(answers.labels)
    drawn: dict[str, dict[str, list[Array]]] = {head: {} for head in answers.heads}
    for weights in resamples:
        for name, head in answers.heads.items():
            for key, values in _computed(Sums(head, answers, filled, weights), len(classes)).items():
                drawn[name].setdefault(key, []).append(values)
    ones = np.ones((len(answers.labels), 1))
    figures = {}
    for name, head in answers.heads.items():
        sums = Sums(head, answers, filled, ones)
        found = {}
        computed = _computed(sums, len(classes)).items()
        for (key, values), metric in zip(computed, (*METRICS, *CLASS_METRICS), strict=True):
            samples = np.concatenate(drawn[name].pop(key), axis=-1)
            found[key] = _intervals(metric, values[..., 0], samples, sums, resamples)
        figures[name] = _assembled(found, filled, classes, sums)
    return figures


def _computed(sums: Sums, classes: int) -> dict[str, Array]:
    """Return all metrics: those of the head (B,), and those of its classes (C, B) behind a slash."""
    found = {metric.name: metric.compute(sums) for metric in METRICS}
    if classes < TOP5_FROM:
        found["top5"] = np.full_like(found["top5"], np.nan)
    return found | {f"/{metric.name}": metric.compute(sums) for metric in CLASS_METRICS}


def _intervals(
    metric: Metric, values: Array, samples: Array, sums: Sums, resamples: Resamples
) -> tuple[Array, Array, Array]:
    """Return a metric's values with their lower and upper bounds, of the shape of the values."""
    low, high = percentiles(samples)
    if metric.biased:
        # An absolute gap grows by the noise of a resample as it has grown by that of the images. The reverse
        # interval takes that off again; it is stretched to the value where it would not hold it.
        low, high = np.maximum(2 * values - high, 0), np.maximum(2 * values - low, values)
        low = np.minimum(low, values)
    if metric.share_of is not None:
        counts = metric.share_of(sums)[..., 0]
        if resamples.grouped:
            # All right, or all wrong: no resample differs. So many groups, not images, say so.
            same = np.isnan(low) & ((values == 0) | (values == 1))
            by_count = wilson(values, np.clip(counts, 1, resamples.units))
        else:
            same = counts > 0
            by_count = wilson(values, np.maximum(counts, 1))
        low, high = np.where(same, by_count[0], low), np.where(same, by_count[1], high)
    return values, low, high


def _assembled(
    found: dict[str, tuple[Array, Array, Array]], filled: Array, names: Sequence[str], sums: Sums
) -> HeadFigures:
    by_class: dict[str, ClassFigures | None] = dict.fromkeys(names)
    for row, number in enumerate(filled.tolist()):
        own = {
            metric.name: figure(*(part[row] for part in found[f"/{metric.name}"])) for metric in CLASS_METRICS
        }
        by_class[names[number]] = ClassFigures(int(sums.images[row, 0]), **own)
    mine = {metric.name: figure(*map(float, found[metric.name])) for metric in METRICS}
    return HeadFigures(by_class, **mine)
