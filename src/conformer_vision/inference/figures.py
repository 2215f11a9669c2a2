"""The machinery of figures with intervals, whatever they are figures of.

A metric is a function of weighted sums over the images. With weights of one it gives the figure, with those
of resamples the figure's interval, so both have one definition. The definitions are those of scikit-learn and
torchmetrics, which take one set of weights at a time and would need hours for a thousand resamples. The tests
compare every figure with theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from scipy.sparse import csr_matrix

from conformer_vision.inference.answers import AnswersOf
from conformer_vision.inference.heads import Head
from conformer_vision.inference.intervals import Array, Figure, Resamples, figure, percentiles, wilson
from conformer_vision.inference.ranking import rank


class WeightedSums(ABC):
    """Weighted sums over N images, for B sets of weights.

    Args:
        weights: (N, B).
    """

    def __init__(self, weights: Array) -> None:
        self._weights = weights
        self.total = weights.sum(axis=0)
        """(B,)."""

    def mean(self, values: Array) -> Array:
        """Return the weighted means (B,) of values (N,)."""
        means: Array = values.astype(self._weights.dtype) @ self._weights / self.total
        return means

    def by(self, places: Array, length: int, values: Array | None = None) -> Array:
        """Return the weighted sums (length, B) of values (N,) by place; images at -1 are in none."""
        rows = np.flatnonzero(places >= 0)
        values = np.ones(len(places)) if values is None else values
        matrix = csr_matrix(
            (values[rows].astype(self._weights.dtype), (places[rows], rows)), shape=(length, len(places))
        )
        summed: Array = matrix @ self._weights
        return summed

    @property
    @abstractmethod
    def images(self) -> Array:
        """(C, B) of each class that is counted."""


class AnswerSums(WeightedSums):
    """Weighted sums over the N images that one head has answered, for B sets of weights.

    Args:
        head: The answers.
        answers: What they answer.
        classes: The C classes that are counted.
        weights: (N, B).
    """

    def __init__(self, head: Head, answers: AnswersOf[Any], classes: Array, weights: Array) -> None:
        super().__init__(weights)
        self._answers = answers
        self._classes = classes
        self._scores = head.scores

    @cached_property
    def ranking(self) -> tuple[Array, Array]:
        """AUROC and average precision, (C, B) each, over the images whose logits are kept."""
        kept = self._answers.kept
        weights = self._weights if self._answers.whole else self._weights[kept]
        return rank(self._scores, self._answers.labels[kept], self._classes.tolist(), weights)


F = TypeVar("F")


@dataclass(frozen=True)
class Metric:
    """How a figure is computed and shown."""

    title: str
    compute: Callable[[Any], Array]
    """Of the sums: (B,), or (C, B) for a metric of every class; NaN where it is undefined."""
    percent: bool = True
    """Whether it is shown in percent."""
    lower: bool = False
    """Whether a lower figure is better."""
    share_of: Callable[[Any], Array] | None = None
    """For a share of images: of how many."""
    biased: bool = False
    """Whether resamples give higher figures than the images; see `_intervals`."""
    interval_digits: int = 2
    """Decimals of the interval of a figure that is not in percent."""
    name: str = ""
    """Its field in the figures of a head or a class."""

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
        scale, digits = (100, (1, 1)) if self.percent else (1, (2 if sign else 3, self.interval_digits))
        text = f"{scale * figure.value:{sign}.{digits[0]}f}"
        if figure.low is None or figure.high is None:
            return text
        return f"{text} [{scale * figure.low:.{digits[1]}f}, {scale * figure.high:.{digits[1]}f}]"


def metric(title: str, compute: Callable[[Any], Array], **options: Any) -> dict[str, Metric]:
    """Return the metadata of the field of a figure."""
    return {"metric": Metric(title, compute, **options)}


def metrics_of(of: type[Any]) -> tuple[Metric, ...]:
    """Return the metrics of a dataclass of figures, in the order of its fields."""
    return tuple(
        replace(each.metadata["metric"], name=each.name) for each in fields(of) if "metric" in each.metadata
    )


class Figures:
    """Has a figure for each of its metrics."""

    def of(self, metric: Metric) -> Figure:
        """Return the figure of one of its metrics."""
        found: Figure = getattr(self, metric.name)
        return found


@dataclass(frozen=True)
class FiguresOfClass(Figures):
    """The figures of one class that has images."""

    images: int
    """Number of images that have the class."""


C = TypeVar("C", bound=FiguresOfClass)


@dataclass(frozen=True)
class FiguresOfHead(Figures, Generic[C]):
    """The figures of one head."""

    classes: dict[str, C | None]
    """By class; None for a class without images."""


def compute_figures(
    sums_of: Mapping[str, Callable[[Array], WeightedSums]],
    resamples: Resamples,
    *,
    of_head: Callable[..., F],
    head_metrics: Sequence[Metric],
    of_class: Callable[..., Any],
    class_metrics: Sequence[Metric],
    classes: Sequence[str],
    filled: Array,
) -> dict[str, F]:
    """Compute the figures of every head, with their intervals.

    Args:
        sums_of: Head -> what makes its sums from weights (N, B).
        resamples: Of the N images; the same for all heads.
        of_head: Makes the figures of a head from those of its classes and, by name, its own.
        head_metrics: Those of a head.
        of_class: Makes the figures of a class from its number of images and, by name, its own.
        class_metrics: Those of a class.
        classes: Names of the K classes.
        filled: (C,), the numbers of the classes that have images, in the order of the sums' rows.
    """
    metrics = {each.name: each for each in head_metrics} | {f"/{each.name}": each for each in class_metrics}
    drawn: dict[str, dict[str, list[Array]]] = {head: {name: [] for name in metrics} for head in sums_of}
    for weights in resamples:
        for head, sums in ((head, make(weights)) for head, make in sums_of.items()):
            for name, each in metrics.items():
                drawn[head][name].append(each.compute(sums))
    ones = np.ones((resamples.images, 1))
    figures = {}
    for head, make in sums_of.items():
        sums = make(ones)
        found = {}
        for name, each in metrics.items():
            samples = np.concatenate(drawn[head].pop(name), axis=-1)
            found[name] = _intervals(each, each.compute(sums)[..., 0], samples, sums, resamples)
        by_class: dict[str, Any] = dict.fromkeys(classes)
        for row, number in enumerate(filled.tolist()):
            own = {m.name: figure(*(part[row] for part in found[f"/{m.name}"])) for m in class_metrics}
            by_class[classes[number]] = of_class(int(sums.images[row, 0]), **own)
        mine = {m.name: figure(*map(float, found[m.name])) for m in head_metrics}
        figures[head] = of_head(by_class, **mine)
    return figures


def _intervals(
    metric: Metric, values: Array, samples: Array, sums: WeightedSums, resamples: Resamples
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


def divided(over: Array, under: Array, *, otherwise: float = np.nan) -> Array:
    """Divide, with another number where the divisor is 0."""
    quotient: Array = np.divide(over, under, out=np.full(over.shape, otherwise, over.dtype), where=under > 0)
    return quotient


def macro(values: Array) -> Array:
    """Return the mean (B,) over the classes of values (C, B) that are defined."""
    defined = np.isfinite(values)
    return divided(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0).astype(values.dtype))
