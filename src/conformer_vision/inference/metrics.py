"""The figures of a head of a model of one label per image, each with its interval.

There is one field of `HeadFigures` or `ClassFigures` per metric; `figures` has the machinery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch

from conformer_vision.inference.answers import Answers
from conformer_vision.inference.calibration import BINS, bins_of
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
from conformer_vision.inference.heads import HeadAnswers
from conformer_vision.inference.intervals import TOP5_FROM, Array, Figure, Resamples


class Sums(AnswerSums):
    """Weighted sums of answers to images of one label each; see `AnswerSums`."""

    def __init__(self, head: HeadAnswers, answers: Answers, classes: Array, weights: Array) -> None:
        super().__init__(head, answers, classes, weights)
        self._head = head

    def within(self, rank: int) -> Array:
        """Return the share (B,) of images whose class is among the first ``rank``."""
        return self.mean(self._head.rank < rank)

    @property
    def top5(self) -> Array:
        """(B,), the share of images whose class is among the first five; undefined of few classes."""
        few = self._head.logits.shape[1] < TOP5_FROM
        return np.full_like(self.total, np.nan) if few else self.within(5)

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
    def kappa(self) -> Array:
        """(B,)."""
        agreement = self.right.sum(axis=0) / self.total
        chance = (self.images * self.predicted).sum(axis=0) / self.total**2
        return divided(agreement - chance, 1 - chance)

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


@dataclass(frozen=True)
class ClassFigures(FiguresOfClass):
    """The figures of one class that has images, against all others."""

    precision: Figure = field(
        metadata=metric("precision", lambda s: s.precision, share_of=lambda s: s.predicted)
    )
    """Share of the images predicted as the class that are of it; 0 if none is."""
    recall: Figure = field(metadata=metric("recall", lambda s: s.recall, share_of=lambda s: s.images))
    """Share of the class's images that are predicted as it."""
    f1: Figure = field(metadata=metric("F1", lambda s: s.f1))
    """Harmonic mean of precision and recall."""
    auroc: Figure = field(metadata=metric("AUROC", lambda s: s.ranking[0]))
    """Chance that an image of the class has a higher probability of it than another image."""
    average_precision: Figure = field(metadata=metric("average precision", lambda s: s.ranking[1]))
    """Mean precision over the class's images, by descending probability."""


@dataclass(frozen=True)
class HeadFigures(FiguresOfHead[ClassFigures]):
    """The figures of one head; macro means are over the classes that have images, with equal weights."""

    top1: Figure = field(metadata=metric("top-1", lambda s: s.within(1), share_of=lambda s: s.total))
    """Accuracy: share of images whose class has the highest probability."""
    top5: Figure = field(metadata=metric("top-5", lambda s: s.top5, share_of=lambda s: s.total))
    """Share of images whose class is among the five with the highest; undefined below `TOP5_FROM` classes."""
    balanced_accuracy: Figure = field(metadata=metric("balanced acc.", lambda s: macro(s.recall)))
    """Macro recall."""
    precision: Figure = field(metadata=metric("precision", lambda s: macro(s.precision)))
    """Macro precision."""
    f1: Figure = field(metadata=metric("F1", lambda s: macro(s.f1)))
    """Macro F1."""
    auroc: Figure = field(metadata=metric("AUROC", lambda s: macro(s.ranking[0])))
    """Macro area under the ROC curve, every class against the rest."""
    average_precision: Figure = field(metadata=metric("mAP", lambda s: macro(s.ranking[1])))
    """Macro average precision (mAP), every class against the rest."""
    kappa: Figure = field(metadata=metric("kappa", lambda s: s.kappa, percent=False))
    """Cohen's kappa: agreement with the labels beyond chance."""
    brier: Figure = field(metadata=metric("Brier score", lambda s: s.brier, percent=False, lower=True))
    """Squared distance of the probabilities from the truth, summed over the classes; in [0, 2]."""
    log_loss: Figure = field(metadata=metric("log loss", lambda s: s.log_loss, percent=False, lower=True))
    """Mean negative log-likelihood of the true class, in nats."""
    ece: Figure = field(metadata=metric("ECE", lambda s: s.ece, lower=True, biased=True))
    """Expected calibration error over 15 bins of equal width."""


METRICS = metrics_of(HeadFigures)
"""Of a head, in the order in which they are shown."""
CLASS_METRICS = metrics_of(ClassFigures)
"""Of every class."""


def head_figures(answers: Answers, classes: Sequence[str], *, seed: int = 0) -> dict[str, HeadFigures]:
    """Compute the figures of every head.

    Args:
        answers: Of the heads, to at least one image; groups in it are resampled as a whole.
        classes: Names of the K classes.
        seed: Seed of the resamples, which are the same for all heads.
    """
    filled = np.unique(answers.labels)
    return compute_figures(
        {name: partial(Sums, head, answers, filled) for name, head in answers.heads.items()},
        Resamples(len(answers.labels), groups=answers.groups, classes=len(classes), seed=seed),
        of_head=HeadFigures,
        head_metrics=METRICS,
        of_class=ClassFigures,
        class_metrics=CLASS_METRICS,
        classes=classes,
        filled=filled,
    )
