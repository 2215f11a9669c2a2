"""The figures of a head of a model of several labels per image, each with its interval.

There is one field of `MultilabelFigures` or `MultilabelClassFigures` per metric; `figures` has the machinery.
Per-class and overall precision, recall and F1 are those of Wang et al. (CVPR 2016) and of all who compare on
MS-COCO since: CF1 is the harmonic mean of the mean precision and the mean recall, not the mean of the F1s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from conformer_vision.inference.answers import AnswersOf, MultilabelAnswers
from conformer_vision.inference.figures import (
    AnswerSums,
    FiguresOfClass,
    FiguresOfHead,
    compute_figures,
    divided,
    macro,
    metric,
    metrics_of,
)
from conformer_vision.inference.heads import MultilabelHead, SeveralLabels
from conformer_vision.inference.intervals import FEWEST_RESAMPLES, UNDEFINED, Array, Figure, Resamples
from conformer_vision.thresholds import UNFITTED


class MultilabelSums(AnswerSums):
    """Weighted sums of answers to images of several labels each; see `AnswerSums`."""

    def __init__(
        self, head: MultilabelHead, answers: MultilabelAnswers, classes: Array, weights: Array
    ) -> None:
        super().__init__(head, answers, classes, weights)
        self._head = head

    @cached_property
    def images(self) -> Array:
        """(C, B), images that have the class."""
        return self._all(self._answers.labels)[self._classes]

    @cached_property
    def predicted(self) -> Array:
        """(C, B), images that are said to have the class."""
        return self._said[self._classes]

    @cached_property
    def right(self) -> Array:
        """(C, B), those of them that have it."""
        return self._hits[self._classes]

    @property
    def precision(self) -> Array:
        """(C, B): 0 for a class that is never predicted, as scikit-learn has it by default."""
        return np.where(self.images > 0, divided(self.right, self.predicted, otherwise=0), np.nan)

    @property
    def recall(self) -> Array:
        """(C, B)."""
        return divided(self.right, self.images)

    @property
    def f1(self) -> Array:
        """(C, B)."""
        return np.where(self.images > 0, divided(2 * self.right, self.images + self.predicted), np.nan)

    @property
    def class_f1(self) -> Array:
        """(B,): CF1."""
        return _harmonic(macro(self.precision), macro(self.recall))

    @property
    def overall_precision(self) -> Array:
        """(B,), over the pairs of an image and a class: 0 if none is predicted."""
        return divided(self._hits.sum(axis=0), self._said.sum(axis=0), otherwise=0)

    @property
    def overall_recall(self) -> Array:
        """(B,), over the same pairs."""
        return divided(self._hits.sum(axis=0), self._all(self._answers.labels).sum(axis=0))

    @property
    def overall_f1(self) -> Array:
        """(B,): OF1."""
        return _harmonic(self.overall_precision, self.overall_recall)

    @property
    def brier(self) -> Array:
        """(B,)."""
        return self.mean(self._head.squares)

    @property
    def log_loss(self) -> Array:
        """(B,), in nats."""
        return self.mean(self._head.losses)

    @property
    def ece(self) -> Array:
        """(B,), of all pairs of an image and a class."""
        gaps = self._head.gaps.T.astype(self._weights.dtype) @ self._weights
        total: Array = np.abs(gaps).sum(axis=0) / self.total / self._head.present.shape[1]
        return total

    @cached_property
    def _said(self) -> Array:
        """(K, B)."""
        return self._all(self._head.present)

    @cached_property
    def _hits(self) -> Array:
        """(K, B)."""
        return self._all(self._head.present & self._answers.labels)

    def _all(self, which: Array) -> Array:
        """Sum the weights (K, B) of the images that a class is of (N, K)."""
        summed: Array = which.T.astype(self._weights.dtype) @ self._weights
        return summed


def _harmonic(precision: Array, recall: Array) -> Array:
    both = precision + recall
    return np.where(np.isnan(both), np.nan, divided(2 * precision * recall, both, otherwise=0))


@dataclass(frozen=True)
class MultilabelClassFigures(FiguresOfClass):
    """The figures of one class that some images have, at its threshold."""

    precision: Figure = field(
        metadata=metric("precision", lambda s: s.precision, share_of=lambda s: s.predicted)
    )
    """Share of the images that are said to have the class that have it; 0 if none is."""
    recall: Figure = field(metadata=metric("recall", lambda s: s.recall, share_of=lambda s: s.images))
    """Share of the images that have the class that are said to have it."""
    f1: Figure = field(metadata=metric("F1", lambda s: s.f1))
    """Harmonic mean of precision and recall."""
    auroc: Figure = field(metadata=metric("AUROC", lambda s: s.ranking[0]))
    """Chance that an image that has the class has a higher probability of it than one that has not."""
    average_precision: Figure = field(metadata=metric("average precision", lambda s: s.ranking[1]))
    """Mean precision over the images that have the class, by descending probability."""


@dataclass(frozen=True)
class MultilabelFigures(FiguresOfHead[MultilabelClassFigures]):
    """The figures of one head; means over the classes are over those that some images have."""

    map: Figure = field(metadata=metric("mAP", lambda s: macro(s.ranking[1])))
    """Mean average precision over the classes."""
    auroc: Figure = field(metadata=metric("AUROC", lambda s: macro(s.ranking[0])))
    """Mean area under the ROC curve over the classes."""
    class_precision: Figure = field(metadata=metric("CP", lambda s: macro(s.precision)))
    """Mean precision over the classes."""
    class_recall: Figure = field(metadata=metric("CR", lambda s: macro(s.recall)))
    """Mean recall over the classes."""
    class_f1: Figure = field(metadata=metric("CF1", lambda s: s.class_f1))
    """Harmonic mean of the two."""
    overall_precision: Figure = field(metadata=metric("OP", lambda s: s.overall_precision))
    """Share of all predicted labels that are right."""
    overall_recall: Figure = field(metadata=metric("OR", lambda s: s.overall_recall))
    """Share of all labels that are predicted."""
    overall_f1: Figure = field(metadata=metric("OF1", lambda s: s.overall_f1))
    """Harmonic mean of the two."""
    brier: Figure = field(
        metadata=metric("Brier score", lambda s: s.brier, percent=False, lower=True, interval_digits=3)
    )
    """Squared distance of the probabilities from the truth, the mean over images and classes; in [0, 1]."""
    log_loss: Figure = field(
        metadata=metric("log loss", lambda s: s.log_loss, percent=False, lower=True, interval_digits=3)
    )
    """Binary cross-entropy in nats, the mean over images and classes."""
    ece: Figure = field(metadata=metric("ECE", lambda s: s.ece, lower=True, biased=True))
    """Expected calibration error of the probabilities of all classes, over 15 bins of equal width."""


class Ranked(NamedTuple):
    """How well one head ranks the images of every class."""

    map: Figure
    classes: list[Figure]
    """Average precision by class; undefined for one that no image has."""


MULTILABEL_METRICS = metrics_of(MultilabelFigures)
"""Of a head, in the order in which they are shown."""
MULTILABEL_CLASS_METRICS = metrics_of(MultilabelClassFigures)
"""Of every class."""


def multilabel_figures(
    answers: MultilabelAnswers, classes: Sequence[str], *, seed: int = 0
) -> dict[str, MultilabelFigures]:
    """Compute the figures of every head.

    Args:
        answers: Of the heads, to at least one image; groups in it are resampled as a whole.
        classes: Names of the K classes.
        seed: Seed of the resamples, which are the same for all heads.
    """
    filled = np.flatnonzero(answers.labels.any(axis=0))
    return compute_figures(
        {name: partial(MultilabelSums, head, answers, filled) for name, head in answers.heads.items()},
        Resamples(len(answers.labels), groups=answers.groups, classes=len(classes), seed=seed),
        of_head=MultilabelFigures,
        head_metrics=MULTILABEL_METRICS,
        of_class=MultilabelClassFigures,
        class_metrics=MULTILABEL_CLASS_METRICS,
        classes=classes,
        filled=filled,
    )


def ranked_figures(
    logits: Mapping[str, Tensor], truth: Tensor, *, groups: Sequence[str] | None
) -> dict[str, Ranked]:
    """Compute mean average precision by head, with intervals from few resamples, for every epoch of a run.

    Args:
        logits: By head, (N, K).
        truth: (N, K) bool, which classes each image has.
        groups: Of the N images, which are then resampled as a whole.
    """
    images, classes = truth.shape
    if not images:
        return {name: Ranked(UNDEFINED, [UNDEFINED] * classes) for name in logits}
    kind, rows = SeveralLabels([UNFITTED] * classes), np.arange(images)
    heads = {}
    for name, own in logits.items():
        columns = {key: column.numpy() for key, column in kind.columns(own, truth, 1.0).items()}
        heads[name] = kind.head(columns, own, 1.0)
    answers = AnswersOf(heads, truth.numpy(), rows, rows, rows, names=[], groups=None, broken=[])
    filled = np.flatnonzero(truth.any(dim=0).numpy())

    def of_head(by_class: dict[str, Figure | None], *, map: Figure) -> Ranked:  # noqa: A002 - its field
        return Ranked(map, [each or UNDEFINED for each in by_class.values()])

    return compute_figures(
        {name: partial(MultilabelSums, head, answers, filled) for name, head in heads.items()},
        Resamples(images, groups=groups, classes=classes, most=FEWEST_RESAMPLES),
        of_head=of_head,
        head_metrics=[each for each in MULTILABEL_METRICS if each.name == "map"],
        of_class=lambda images, *, average_precision: average_precision,
        class_metrics=[each for each in MULTILABEL_CLASS_METRICS if each.name == "average_precision"],
        classes=[str(number) for number in range(classes)],
        filled=filled,
    )
