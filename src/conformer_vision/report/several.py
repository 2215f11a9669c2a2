"""The report of a run of several labels per image: figures by head and class, worst images, calibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import conformer_vision
from conformer_vision import pages
from conformer_vision.data import ImageSource
from conformer_vision.explain import Explainer
from conformer_vision.inference.answers import AnswersOf
from conformer_vision.inference.calibration import Calibration, calibrate
from conformer_vision.inference.class_thresholds import at_fitted_thresholds
from conformer_vision.inference.evaluation import MultilabelEvaluation, evaluate_answers, evaluate_images
from conformer_vision.inference.fit import FittedClasses, fit_multilabel
from conformer_vision.inference.heads import Array, MultilabelHead
from conformer_vision.inference.intervals import Figure
from conformer_vision.inference.multilabel_metrics import MultilabelClassFigures
from conformer_vision.pages import Thumbnail
from conformer_vision.report.analysis import evenly
from conformer_vision.report.charts import curves, reliability_diagram
from conformer_vision.report.findings import Note
from conformer_vision.report.formats import FILTERS
from conformer_vision.report.images import again_by_number, thumbnail
from conformer_vision.report.opened import OpenedRun, broken_in_training, class_sizes
from conformer_vision.runs import REPORT_FILE
from conformer_vision.runtime.base import FUSED, Outputs

WORST = 24
"""Images that are shown as the worst, those with the most wrong labels first."""
SAMPLES = 12
"""Images that are shown of all kinds, at most."""
_HEADS = {"fused": "Fused (the prediction)", "conv": "Convolution branch", "trans": "Transformer branch"}


class ShownImage(NamedTuple):
    """An image with the labels that it has or was given."""

    thumbnail: Thumbnail
    right: list[str]
    """Labels that it has and was given."""
    missed: list[str]
    """Labels that it has and was not given."""
    added: list[str]
    """Labels that it was given and has not."""


class ClassRow(NamedTuple):
    """The figures of one class."""

    name: str
    threshold: float
    figures: MultilabelClassFigures | None
    """None without images."""


@dataclass(frozen=True)
class MultilabelFindings:
    """All that the report says."""

    run: OpenedRun
    date: date
    """On which the images were evaluated."""
    evaluation: MultilabelEvaluation
    """At temperature 1, each half of the images at thresholds that were fitted to the other half."""
    calibration: Calibration
    thresholds: FittedClasses
    """Fitted to all images, for the temperature of the calibration."""
    worst: list[ShownImage]
    samples: list[ShownImage]
    """One of every class, or of some classes."""
    class_sizes: dict[str, dict[str, int]]
    """Split -> class -> images that have it."""
    broken_in_training: list[str]
    """One line for each image that training could not read."""
    notes: list[Note]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.run.folder

    @property
    def weights(self) -> str:
        """Name of the file with the weights."""
        return self.run.trained.path.name

    @property
    def path(self) -> Path:
        """The page."""
        return self.folder / REPORT_FILE

    @property
    def broken(self) -> list[str]:
        """One line for each image that could not be read."""
        return self.evaluation.broken

    @property
    def summary(self) -> list[str]:
        """What the command prints."""
        metric, figures = self.evaluation.metrics[0], self.evaluation.heads[FUSED]
        images = f"{self.evaluation.samples:,} images (in brackets: 95 % interval)"
        return [f"{metric.title} {metric.text(figures.of(metric))} % of {images}"]

    @property
    def stored(self) -> str | None:
        """What of the thresholds is stored with the model, in words."""
        if self.thresholds.thresholds is None:
            return None
        return "thresholds of the classes, stored with the model"

    @property
    def note(self) -> str | None:
        """Why some thresholds are missing."""
        return self.thresholds.note


def examine_multilabel(run: OpenedRun, *, batch_size: int, workers: int) -> MultilabelFindings:
    """Find what the report says; changes nothing."""
    trained, spec, notes = run.trained, run.trained.spec, list(run.notes)
    evaluation = evaluate_images(trained, run.source, batch_size=batch_size, workers=workers, temperature=1.0)
    assert isinstance(evaluation, MultilabelEvaluation)
    fused = evaluation.answers.heads[FUSED].logits
    truth = torch.from_numpy(evaluation.answers.labels[evaluation.answers.kept])
    calibration = calibrate(fused, truth, seed=run.seed)
    outputs = Outputs({FUSED: fused.numpy()}, None)
    fitted = fit_multilabel(outputs, truth.numpy(), spec=spec, temperature=calibration.temperature)
    crossed = None
    if fitted.thresholds is not None:
        crossed = at_fitted_thresholds(evaluation.answers, seed=run.seed)
    if crossed is not None:
        evaluation_at = evaluate_answers(crossed, spec, seconds=evaluation.seconds)
        assert isinstance(evaluation_at, MultilabelEvaluation)
        evaluation = evaluation_at
        text = "Labels are given at thresholds that were fitted to the other half of the validation images."
    else:
        text = "Labels are given at a probability of one half, or at the thresholds of an earlier report."
    answers = evaluation.answers
    return MultilabelFindings(
        run,
        date.today(),
        evaluation,
        calibration,
        fitted,
        worst=list(_shown(run, answers, _worst(answers))),
        samples=list(_shown(run, answers, _samples(answers))),
        class_sizes=class_sizes(run, answers.labels.sum(axis=0)),
        broken_in_training=broken_in_training(run.folder, evaluation.broken),
        notes=[*notes, Note(text)],
    )


def _worst(answers: AnswersOf[MultilabelHead]) -> list[int]:
    """Return the rows with the most wrong labels; of as many, the one with the highest loss first."""
    wrong = (answers.heads[FUSED].present != answers.labels).sum(axis=1)
    order = np.lexsort((-answers.heads[FUSED].losses, -wrong))[:WORST]
    return [row for row in order.tolist() if wrong[row]]


def _samples(answers: AnswersOf[MultilabelHead]) -> list[int]:
    """Return the first row of every class that is not drawn yet; of many classes, of evenly drawn ones."""
    classes = np.flatnonzero(answers.labels.any(axis=0))
    rows: dict[int, None] = {}
    for k in classes[evenly(len(classes), SAMPLES).numpy()].tolist():
        own = (row for row in np.flatnonzero(answers.labels[:, k]).tolist() if row not in rows)
        rows |= dict.fromkeys(itertools.islice(own, 1))
    return list(rows)


def _shown(run: OpenedRun, answers: AnswersOf[MultilabelHead], rows: Sequence[int]) -> Iterator[ShownImage]:
    """Read the images of some rows again; of a stream, images have no numbers to be read again by."""
    if not isinstance(run.source, ImageSource):
        return
    classes, said, truth = run.trained.spec.labels, answers.heads[FUSED].present, answers.labels
    explainer = Explainer(run.folder, device=run.trained.runtime.device)

    def named(row: Array) -> list[str]:
        return [classes[k] for k in np.flatnonzero(row)]

    for row in rows:
        again = again_by_number(run.source, int(answers.indices[row]), explainer)
        right, missed, added = truth[row] & said[row], truth[row] & ~said[row], said[row] & ~truth[row]
        first = int(np.flatnonzero(missed | added if (missed | added).any() else right)[0])
        yield ShownImage(thumbnail(again, explainer, first), named(right), named(missed), named(added))


def class_rows(evaluation: MultilabelEvaluation, thresholds: Sequence[float]) -> list[ClassRow]:
    """Return all classes, lowest average precision first, those without images last."""

    def precision(row: ClassRow) -> float:
        figure = Figure(None, None, None) if row.figures is None else row.figures.average_precision
        return 2.0 if figure.value is None else figure.value

    figures = evaluation.heads[FUSED].classes.items()
    rows = [ClassRow(name, own, each) for (name, each), own in zip(figures, thresholds, strict=True)]
    return sorted(rows, key=precision)


def render_multilabel(findings: MultilabelFindings) -> str:
    """Render the page as HTML that needs no other file."""
    run, evaluation, calibration = findings.run, findings.evaluation, findings.calibration
    spec = run.trained.spec
    fitted = replace(spec, thresholds=findings.thresholds.thresholds)
    diagrams = [reliability_diagram(calibration.before, name="before", title="Before scaling")]
    if calibration.after is not None:
        title = "After scaling (cross-fitted)"
        diagrams.append(reliability_diagram(calibration.after, name="after", title=title))
    context = {
        "findings": findings,
        "run": run,
        "spec": spec,
        "parameters": run.trained.runtime.parameters,
        "evaluation": evaluation,
        "fused": evaluation.heads[FUSED],
        "metrics": evaluation.metrics,
        "class_metrics": [evaluation.class_metrics[-1], *evaluation.class_metrics[:3]],
        "heads": [(_HEADS[head], head) for head in _HEADS if head in evaluation.heads],
        "class_rows": class_rows(evaluation, fitted.class_thresholds),
        "calibration": calibration,
        "classes": spec.labels,
        "unit": "labels",
        "curves": curves(run.rows),
        "diagrams": diagrams,
        "versions": {
            "conformer-vision": conformer_vision.__version__,
            **{name: version(name) for name in ("torch", "timm", "lightning")},
        },
    }
    return pages.render(__package__, "several.html.j2", context, filters=FILTERS)
