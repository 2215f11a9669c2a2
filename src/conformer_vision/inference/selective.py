"""What rejecting unsure answers brings: accuracy of the sure ones, images of other things, sets of classes.

Shapes: N labelled images, M images of other things, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from sklearn.metrics import roc_auc_score

from conformer_vision.data import BrokenImageError, open_images
from conformer_vision.data.base import is_counted
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.splits import Splitting
from conformer_vision.errors import UserError, option, some_names
from conformer_vision.files import atomic_path
from conformer_vision.inference.intervals import Figure, Resamples, figure, percentiles, share
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.pages.palette import LIGHT
from conformer_vision.plotting import PERCENT, Colours, style
from conformer_vision.preprocessing import read_through
from conformer_vision.runtime import base
from conformer_vision.runtime.base import FUSED, Floats, Outputs
from conformer_vision.runtime.conformal import sets
from conformer_vision.runtime.decisions import head_probabilities
from conformer_vision.runtime.inputs import named_images
from conformer_vision.runtime.unsure import Judge

TABLES = (".parquet", ".csv", ".arrow", ".tar", ".zip")
"""Endings of files that hold sets of images; any other file is an image."""
SHOWN = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of answers whose accuracy is given."""

Array = npt.NDArray[np.float64]


class Point(NamedTuple):
    """The accuracy of the surest answers."""

    coverage: float
    """Their share of all answers."""
    accuracy: float


@dataclass(frozen=True)
class Unknown:
    """How well images of other things are told."""

    images: int
    auroc: Figure
    """Probability that one of the labelled images is surer than one of them."""
    fpr95: Figure
    """Share of them that is as sure as the surest 95 % of the labelled images."""
    unsure: Figure
    """Share of them whose answer is unsure at the model's coverage, or the one asked for."""
    broken: list[str]


@dataclass(frozen=True)
class Sets:
    """Conformal sets of the labelled images."""

    error_rate: float
    """What was asked for."""
    errors: Figure
    """Share of sets without the true class."""
    size: float
    """Mean number of classes."""
    single: float
    """Share of sets of a single class."""


@dataclass(frozen=True)
class Selective:
    """What rejecting brings on labelled images; shares are in [0, 1]."""

    coverage: float
    """Share of images like the validation images that is to be answered."""
    answered: Figure
    """Share that is answered."""
    accuracy: Figure
    """Top-1 of the sure answers."""
    accuracy_unsure: Figure
    """Top-1 that the unsure answers would have."""
    aurc: float
    """Area under the risk-coverage curve (Geifman and El-Yaniv, 2017): mean share of errors among the surest
    answers, over all numbers of answers."""
    curve: tuple[Point, ...]
    """The curve at some coverages."""
    sets: Sets | None
    unknown: Unknown | None
    risks: Array = field(repr=False, compare=False)
    """(N,): the curve itself, see `risk_coverage`; not in the JSON."""


class Watch:
    """Follows the outputs of an evaluation, for `Selective`.

    Args:
        trained: A model with thresholds.
        judge: Of the model.
        conformal: Error rate of sets of classes; None for no sets.

    Raises:
        UserError: As `TrainedModel.set_rule`.
    """

    def __init__(self, trained: TrainedModel, judge: Judge, *, conformal: float | None = None) -> None:
        self.trained, self.judge, self._error_rate = trained, judge, conformal
        self._sets: Callable[[base.Array], base.Array] | None = None
        if conformal is not None:
            self._sets = partial(sets, rule=trained.set_rule(conformal), error_rate=conformal)
        self._scores: list[base.Array] = []
        self._right: list[base.Array] = []
        self._sizes: list[base.Array] = []
        self._hits: list[base.Array] = []

    def add(self, outputs: Outputs, labels: base.Array) -> None:
        """Add a batch: its outputs and classes (B,)."""
        self._scores.append(self.judge.score(outputs))
        self._right.append(outputs.logits[FUSED].argmax(axis=1) == labels)
        if self._sets is not None:
            members = self._sets(head_probabilities(outputs.logits, self.trained.spec)[FUSED])
            self._sizes.append(members.sum(axis=1))
            self._hits.append(members[np.arange(len(labels)), labels])

    def finish(self, unknown: tuple[Array, list[str]] | None = None) -> Selective:
        """Compute the figures.

        Args:
            unknown: Scores (M,) of images of other things, and a line for each that could not be read.
        """
        scores, right = (np.concatenate(each) for each in (self._scores, self._right))
        found = selective(scores, right, threshold=self.judge.threshold, coverage=self.judge.coverage)
        told = None if unknown is None else self._finish_unknown(scores, *unknown)
        return replace(found, sets=self._finish_sets(), unknown=told)

    def _finish_sets(self) -> Sets | None:
        if self._error_rate is None:
            return None
        sizes, hits = np.concatenate(self._sizes), np.concatenate(self._hits)
        size, single = float(sizes.mean()), float((sizes == 1).mean())
        return Sets(self._error_rate, share(int((~hits).sum()), len(hits)), size, single)

    def _finish_unknown(self, known: Array, unknown: Array, broken: list[str]) -> Unknown:
        unsure = int((~(unknown >= self.judge.threshold)).sum())
        told = area(known, unknown), false_positives(known, unknown), share(unsure, len(unknown))
        return Unknown(len(unknown), *told, broken)


def make_watch(
    trained: TrainedModel, *, coverage: float | None, conformal: float | None, ood: str | None
) -> Watch | None:
    """Return what follows the outputs of a model; None for a model without thresholds.

    Args:
        trained: The model.
        coverage: See `evaluate`; with it, or one of the next two, a model without thresholds is an error.
        conformal: See `evaluate`.
        ood: See `evaluate`.

    Raises:
        UserError: The model has no thresholds but needs them, or as `Judge` and `TrainedModel.set_rule`.
    """
    if conformal is not None:
        trained.set_rule(conformal)
    if ood is not None:
        trained.need_thresholds(option("ood", ood))
    judge = trained.judge(coverage=coverage)
    return None if judge is None else Watch(trained, judge, conformal=conformal)


def selective(scores: Array, right: npt.NDArray[np.bool_], *, threshold: float, coverage: float) -> Selective:
    """Compute what rejecting brings on N labelled images.

    Args:
        scores: (N,), the lower, the less sure.
        right: (N,), whether the answers are right.
        threshold: An answer whose score is below it is unsure.
        coverage: What the threshold is meant to give.
    """
    sure = scores >= threshold
    curve = risk_coverage(scores, right)
    counts = {part: round(part * len(curve)) for part in SHOWN}
    return Selective(
        coverage=coverage,
        answered=share(int(sure.sum()), len(sure)),
        accuracy=share(int(right[sure].sum()), int(sure.sum())),
        accuracy_unsure=share(int(right[~sure].sum()), int((~sure).sum())),
        aurc=float(curve.mean()),
        curve=tuple(Point(part, 1 - float(curve[n - 1])) for part, n in counts.items() if n),
        risks=curve,
        sets=None,
        unknown=None,
    )


def risk_coverage(scores: Array, right: npt.NDArray[np.bool_]) -> Array:
    """Compute the share of errors among the 1, 2, ... N surest answers, (N,); equal ones in any order."""
    wrong = ~right[np.argsort(-scores, kind="stable")]
    return np.cumsum(wrong) / np.arange(1, len(wrong) + 1)


def area(known: Array, unknown: Array) -> Figure:
    """Compute the area under the ROC curve (AUROC) of scores, with a bootstrap interval over the images."""
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    value = roc_auc_score(truth, np.r_[known, unknown])
    # The share of pairs in the right order is a mean over known images, for each draw of the unknown ones.
    order = np.sort(unknown)
    places = [np.searchsorted(order, known, side=side) for side in ("left", "right")]
    samples = []
    both = zip(Resamples(len(known), seed=0), Resamples(len(unknown), seed=1), strict=False)
    for ours, theirs in both:
        sums = np.vstack([np.zeros((1, theirs.shape[1])), np.cumsum(theirs[np.argsort(unknown)], axis=0)])
        count = min(ours.shape[1], sums.shape[1])
        before = (sums[places[0]] + sums[places[1]])[:, :count] / 2
        samples.append((before * ours[:, :count]).sum(axis=0) / len(known) / len(unknown))
    low, high = percentiles(np.concatenate(samples))
    return figure(float(value), float(low), float(high))


def false_positives(known: Array, unknown: Array) -> Figure:
    """Compute the share of unknown images with the score that 95 % of the known ones reach (FPR95)."""
    threshold = np.sort(known)[len(known) // 20]
    return share(int((unknown >= threshold).sum()), len(unknown))


def unknown_scores(watch: Watch, source: str, *, batch_size: int) -> tuple[Array, list[str]]:
    """Compute the scores (M,) of images of other things.

    Args:
        watch: Of the model.
        source: An image or a folder, whose images in and below it are taken, or a set of images with labels,
            which are not used.
        batch_size: Images per forward pass.

    Returns:
        The scores, and a line for each image that could not be read.

    Raises:
        UserError: No images, none that can be read, or the model's own classes.
    """
    broken: list[str] = []
    trained = watch.trained
    trained.prepare(None, batch_size=batch_size)
    batches = _batches(trained, source, batch_size=batch_size, broken=broken)
    scores = [watch.judge.score(trained.outputs(batch)) for batch in batches]
    if not scores:
        raise UserError(f"{option('ood', source)}: none of its images can be read; the first: {broken[0]}")
    return np.concatenate(scores), broken


def _batches(trained: TrainedModel, source: str, *, batch_size: int, broken: list[str]) -> Iterator[Floats]:
    """Yield the images (B, C, H, W), and add a line to ``broken`` for each that cannot be read."""
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix.lower() not in TABLES):
        images = list(named_images(path))
        _refuse_known({image.parent.name for image in (Path(each.name) for each in images)}, trained, source)
        waiting: list[Floats] = []
        for image in images:
            try:
                waiting.append(read_through(trained.transform, image.open))
            except BrokenImageError as error:
                broken.append(str(error))
            if len(waiting) == batch_size:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)
        return
    opened = open_images(source, "all", Splitting())
    _refuse_known(set(opened.classes), trained, source)
    transform = trained.transform.then(torch.from_numpy)
    for batch in evaluation_loader(opened, transform, batch_size=batch_size, workers=0):
        broken += batch.broken
        if (read := is_counted(batch.labels)).any():
            yield batch.images[read].numpy()


def _refuse_known(names: set[str], trained: TrainedModel, source: str) -> None:
    """Refuse folders or classes that are called like classes of the model, which are no other things."""
    if known := sorted(names & {*trained.spec.classes, *trained.spec.labels}):
        raise UserError(
            f"{option('ood', source)} holds the model's own classes ({some_names(known)}); leave them out"
        )


def save_risk_coverage(selective: Selective, path: str | Path) -> None:
    """Draw the risk-coverage curve and write a PNG file, atomically.

    Raises:
        UserError: The file cannot be written.
    """
    with rc_context(style(LIGHT)):
        figure = Drawing(figsize=(5, 3.5))
        plot_risk_coverage(figure.add_subplot(), selective.risks, selective.answered.value, LIGHT)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def plot_risk_coverage(axes: Axes, risks: Array, answered: float | None, colours: Colours) -> None:
    """Draw a risk-coverage curve.

    Args:
        axes: To draw on.
        risks: (N,) from `risk_coverage`.
        answered: Share of sure answers at the reject threshold, which is marked; None for no mark.
        colours: See `plotting`.
    """
    axes.plot(np.arange(1, len(risks) + 1) / len(risks), risks, color=colours["fused"], linewidth=2)
    if answered is not None:
        axes.axvline(answered, color=colours["muted"], linestyle="--", linewidth=1)
        axes.text(
            answered,
            0.03,
            "reject threshold ",
            transform=axes.get_xaxis_transform(),
            rotation=90,
            ha="right" if answered > 0.5 else "left",
            va="bottom",
            fontsize=8,
            color=colours["muted"],
        )
    axes.set(xlabel="coverage: sure answers", ylabel="risk: errors among them", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
