"""The report of a run of several labels per image: figures by head and class, worst images, calibration."""

from __future__ import annotations

from collections.abc import Sequence
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
from conformer_vision.inference.calibration import Calibration, calibrate
from conformer_vision.inference.class_thresholds import at_fitted_thresholds
from conformer_vision.inference.evaluation import MultilabelEvaluation, evaluate_answers, evaluate_images
from conformer_vision.inference.fit import FittedClasses, fit_multilabel
from conformer_vision.inference.heads import Array
from conformer_vision.inference.intervals import Figure
from conformer_vision.inference.multilabel_metrics import MultilabelClassFigures
from conformer_vision.inference.runtimes import FUSED, Outputs
from conformer_vision.pages import Thumbnail
from conformer_vision.report.charts import curves, reliability_diagram
from conformer_vision.report.findings import Note
from conformer_vision.report.formats import FILTERS
from conformer_vision.report.images import again_by_number, thumbnail
from conformer_vision.report.opened import OpenedRun
from conformer_vision.runs import REPORT_FILE

WORST = 24
"""Images that are shown, those with the most wrong labels first."""
_HEADS = {"fused": "Fused (the prediction)", "conv": "Convolution branch", "trans": "Transformer branch"}


class WorstImage(NamedTuple):
    """An image with wrong labels."""

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
    worst: list[WorstImage]
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
    outputs = Outputs({FUSED: fused}, None)
    fitted = fit_multilabel(outputs, truth, spec=spec, temperature=calibration.temperature)
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
    return MultilabelFindings(
        run, date.today(), evaluation, calibration, fitted, _worst(run, evaluation), [*notes, Note(text)]
    )


def _worst(run: OpenedRun, evaluation: MultilabelEvaluation) -> list[WorstImage]:
    """Return the images with the most wrong labels; of as many, the one with the highest loss first."""
    if not isinstance(run.source, ImageSource):
        return []  # of a stream, images have no numbers to be read again by
    answers, classes = evaluation.answers, run.trained.spec.labels
    said, truth = answers.heads[FUSED].present, answers.labels
    wrong = (said != truth).sum(axis=1)
    order = np.lexsort((-answers.heads[FUSED].losses, -wrong))[:WORST]
    explainer = Explainer(run.folder, device=run.trained.device)

    def named(row: Array) -> list[str]:
        return [classes[k] for k in np.flatnonzero(row)]

    found = []
    for row in (row for row in order.tolist() if wrong[row]):
        again = again_by_number(run.source, int(answers.indices[row]), explainer)
        missed, added = truth[row] & ~said[row], said[row] & ~truth[row]
        first = int(np.flatnonzero(missed | added)[0])
        found.append(
            WorstImage(
                thumbnail(again, explainer, first), named(truth[row] & said[row]), named(missed), named(added)
            )
        )
    return found


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
    fitted = replace(run.trained.spec, thresholds=findings.thresholds.thresholds)
    diagrams = [reliability_diagram(calibration.before, name="before", title="Before scaling")]
    if calibration.after is not None:
        title = "After scaling (cross-fitted)"
        diagrams.append(reliability_diagram(calibration.after, name="after", title=title))
    context = {
        "findings": findings,
        "run": run,
        "spec": run.trained.spec,
        "parameters": run.trained.runtime.parameters,
        "evaluation": evaluation,
        "fused": evaluation.heads[FUSED],
        "metrics": evaluation.metrics,
        "class_metrics": [evaluation.class_metrics[-1], *evaluation.class_metrics[:3]],
        "heads": [(_HEADS[head], head) for head in _HEADS if head in evaluation.heads],
        "class_rows": class_rows(evaluation, fitted.class_thresholds),
        "calibration": calibration,
        "curves": curves(run.rows),
        "diagrams": diagrams,
        "versions": {
            "conformer-vision": conformer_vision.__version__,
            **{name: version(name) for name in ("torch", "timm", "lightning")},
        },
    }
    return pages.render(__package__, "several.html.j2", context, filters=FILTERS)
