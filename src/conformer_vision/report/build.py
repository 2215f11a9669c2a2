"""Make the report of a run: evaluate its validation images, fit temperature and thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from conformer_vision.data import ImageSource
from conformer_vision.explain import Explainer
from conformer_vision.inference.calibration import calibrate
from conformer_vision.inference.evaluation import Evaluation, evaluate_images
from conformer_vision.inference.fit import FittedThresholds, OutputSample, fit_thresholds
from conformer_vision.inference.selective import Selective, selective
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.pages import write_page
from conformer_vision.report.analysis import Outcome, outcome_of, sample_rows, study_branches, worst_errors
from conformer_vision.report.findings import Findings, Note
from conformer_vision.report.frozen import probe_start
from conformer_vision.report.images import Again, read_again, thumbnail
from conformer_vision.report.opened import broken_in_training, class_sizes, open_run
from conformer_vision.report.page import render
from conformer_vision.report.several import MultilabelFindings, examine_multilabel, render_multilabel
from conformer_vision.runs import (
    BEST_WEIGHTS,
    LAST_WEIGHTS,
)
from conformer_vision.runtime.base import FUSED, Array
from conformer_vision.runtime.unsure import Judge
from conformer_vision.weights import Calibrated, save_calibration

WORST = 24
"""Errors that are shown with their images."""
SAMPLES = 12
"""Images that are shown of all kinds, at most."""
EXAMPLES = 8
"""Images shown for each way in which the branches are right or wrong."""


def write_report(
    folder: str | Path,
    *,
    data: str | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Findings | MultilabelFindings:
    """Evaluate a run on its validation images, store temperature and thresholds, write ``report.html``.

    Args:
        folder: A run folder.
        data: The run's data if it has moved; by default what its ``config.yaml`` names.
        device: ``auto`` or a torch device.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this process.

    Returns:
        What the report says; its ``path`` is the page's.

    Raises:
        UserError: Not a run folder, its data is missing or has other classes, no image can be read,
            or the folder cannot be written.
    """
    findings = examine(Path(folder), data=data, device=device, batch_size=batch_size, workers=workers)
    save_report(findings)
    return findings


def save_report(findings: Findings | MultilabelFindings) -> None:
    """Store temperature and thresholds with the model, and write the page."""
    fitted = findings.thresholds
    store_calibration(
        findings.folder / findings.weights,
        Calibrated(findings.calibration.temperature, fitted.thresholds, fitted.class_means),
    )
    page = render(findings) if isinstance(findings, Findings) else render_multilabel(findings)
    write_page(findings.path, page)


def examine(
    folder: Path, *, data: str | None, device: str | torch.device, batch_size: int, workers: int
) -> Findings | MultilabelFindings:
    """Find what `write_report` writes; changes nothing."""
    run = open_run(folder, data=data, device=device)
    if run.trained.spec.multilabel:
        return examine_multilabel(run, batch_size=batch_size, workers=workers)
    trained, images, source, notes = run.trained, run.images, run.source, run.notes
    # At temperature 1, whatever an earlier report has stored: it is fitted to these images.
    sample = OutputSample(len(source) if isinstance(source, ImageSource) else source.length)
    evaluation = evaluate_images(
        trained, source, batch_size=batch_size, workers=workers, temperature=1.0, watch=sample.add
    )
    assert isinstance(evaluation, Evaluation)
    outcome = outcome_of(evaluation.answers)
    if evaluation.ranked < evaluation.samples:
        notes.append(
            Note(
                f"Worst errors, branches, calibration, AUROC and average precision are those of"
                f" {evaluation.ranked:,} of the {evaluation.samples:,} images, whose logits fit into memory."
            )
        )
    calibration = calibrate(outcome.logits, outcome.labels, seed=run.seed)
    outputs, labels = sample.join()
    thresholds = fit_thresholds(outputs, labels, spec=trained.spec, temperature=calibration.temperature)
    probed = probe_start(
        folder,
        trained.spec,
        replace(images, split="train"),
        source,
        device=torch.device(trained.runtime.device),
        batch_size=batch_size,
        workers=workers,
    )
    if isinstance(probed, str):
        notes.append(Note(probed))
        probed = None
    worst = worst_errors(outcome, temperature=calibration.temperature, most=WORST)
    study = study_branches(outcome, most=EXAMPLES)
    samples = sample_rows(outcome, most=SAMPLES)
    shown = dict.fromkeys([*worst, *samples])
    if study is not None:
        shown |= dict.fromkeys(row for case in study.cases.values() for row in case.rows)
    shown_images, unsure = {}, {}
    explainer = Explainer(folder, device=device)
    why_unsure = _why_unsure(trained, thresholds, outcome, sample.places)
    predicted = outcome.logits.argmax(dim=1).tolist()
    for row, again in read_again(
        shown, outcome, source, explainer=explainer, batch_size=batch_size, workers=workers
    ):
        shown_images[row] = thumbnail(again, explainer, predicted[row])
        if (why := why_unsure(row, again)) is not None:
            unsure[row] = why
    return Findings(
        folder=folder,
        date=date.today(),
        data=run.data,
        moved=run.moved,
        seed=run.seed,
        settings=run.settings,
        config_text=run.config_text,
        rows=run.rows,
        weights=trained.path.name,
        spec=trained.spec,
        parameters=trained.runtime.parameters,
        device=run.device,
        evaluation=evaluation,
        calibration=calibration,
        thresholds=thresholds,
        outcome=outcome,
        selective=_selective(thresholds, right=outputs.logits[FUSED].argmax(axis=1) == labels),
        worst=worst,
        samples=samples,
        study=study,
        images=shown_images,
        unsure=unsure,
        class_sizes=class_sizes(
            run, np.bincount(evaluation.answers.labels, minlength=len(trained.spec.classes))
        ),
        broken_in_training=broken_in_training(folder, evaluation.broken),
        probe=probed,
        notes=notes,
    )


def _why_unsure(
    trained: TrainedModel, fitted: FittedThresholds, outcome: Outcome, places: list[int]
) -> Callable[[int, Again], str | None]:
    """Return what tells why the answer to an image in a row is unsure, or None.

    An image that thresholds were fitted to was compared with the others, any other one with all of those.
    """
    if fitted.thresholds is None:
        return lambda row, again: None
    known = dict(zip(places, fitted.unsure, strict=True))
    judge = Judge(fitted.thresholds, fitted.class_means)

    def why(row: int, again: Again) -> str | None:
        place = int(outcome.places[row])
        if place in known or again.image is None:
            return known.get(place)
        return judge(trained.outputs(again.batch.cpu().numpy()))[0]

    return why


def _selective(fitted: FittedThresholds, *, right: Array) -> Selective | None:
    """Return what rejecting brings on the images that thresholds were fitted to."""
    if fitted.thresholds is None or fitted.scores is None:
        return None
    coverage = fitted.thresholds.coverage
    threshold = fitted.thresholds.reject[0].threshold(coverage)
    return selective(fitted.scores, right, threshold=threshold, coverage=coverage)


def store_calibration(path: Path, fitted: Calibrated) -> None:
    """Store what was fitted in a run's weights, and in its other file of weights if they are the same."""
    save_calibration(path, fitted)
    for name in (BEST_WEIGHTS, LAST_WEIGHTS):
        other = path.with_name(name)
        if name != path.name and other.is_file() and _same_weights(path, other):
            save_calibration(other, fitted)


def _same_weights(first: Path, second: Path) -> bool:
    try:
        one, two = load_file(first), load_file(second)
    except Exception:  # the other file is damaged, which does not concern the report
        return False
    return one.keys() == two.keys() and all(
        tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]) for name, tensor in one.items()
    )
