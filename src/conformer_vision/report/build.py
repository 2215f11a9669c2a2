"""Make the report of a run: evaluate its validation images, fit temperature and thresholds."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from conformer_vision.data import ImageSource, ImageStream
from conformer_vision.data.base import fingerprint
from conformer_vision.errors import UserError, option
from conformer_vision.explain import Explainer
from conformer_vision.inference.calibration import calibrate
from conformer_vision.inference.evaluation import Evaluation, evaluate_images
from conformer_vision.inference.fit import OutputSample, fit_thresholds
from conformer_vision.inference.labelled import LabelledImages, read_run_data
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.pages import write_page
from conformer_vision.report.analysis import outcome_of, study_branches, worst_errors
from conformer_vision.report.findings import Findings, RunSettings
from conformer_vision.report.frozen import probe_start
from conformer_vision.report.images import thumbnails
from conformer_vision.report.page import render
from conformer_vision.runs import (
    BEST_WEIGHTS,
    CONFIG_FILE,
    LAST_WEIGHTS,
    METRICS_FILE,
    fold_folders,
    read_results,
)
from conformer_vision.weights import Calibrated, save_calibration

WORST = 24
"""Errors that are shown with their images."""
EXAMPLES = 8
"""Images shown for each way in which the branches are right or wrong."""


def write_report(
    folder: str | Path,
    *,
    data: str | None = None,
    device: str | torch.device = "auto",
    batch_size: int = 64,
    workers: int = 0,
) -> Findings:
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


def save_report(findings: Findings) -> None:
    """Store temperature and thresholds with the model, and write the page."""
    fitted = findings.thresholds
    store_calibration(
        findings.folder / findings.weights,
        Calibrated(findings.calibration.temperature, fitted.thresholds, fitted.class_means),
    )
    write_page(findings.path, render(findings))


def examine(
    folder: Path, *, data: str | None, device: str | torch.device, batch_size: int, workers: int
) -> Findings:
    """Find what `write_report` writes; changes nothing."""
    if folds := fold_folders(folder):
        raise UserError(
            f"{folder} is the run of several folds, each with a report; give one, such as {folds[0]}"
        )
    settings = RunSettings.read(folder)
    trained_on = read_run_data(folder)
    rows = read_metrics(folder / METRICS_FILE)
    trained = TrainedModel(folder, device=device)
    notes, exclude = _notes(settings, trained)
    data = data or trained_on.data
    if data is None:
        raise UserError(f"{folder / CONFIG_FILE} names no data; give it with {option('data')}")
    images = LabelledImages(data, "val", trained_on.splitting, data_dir=trained_on.data_dir, exclude=exclude)
    source = images.open(trained.spec)
    if isinstance(source, ImageSource) and not len(source):
        raise UserError(f"{data} has no validation images to report on")
    if data != trained_on.data:
        _check_same_images(folder, data, source)
    # At temperature 1, whatever an earlier report has stored: it is fitted to these images.
    sample = OutputSample(len(source) if isinstance(source, ImageSource) else source.length)
    evaluation = evaluate_images(
        trained, source, batch_size=batch_size, workers=workers, temperature=1.0, watch=sample.add
    )
    assert isinstance(evaluation, Evaluation)
    outcome = outcome_of(evaluation.answers)
    if evaluation.ranked < evaluation.samples:
        notes.append(
            f"Worst errors, branches, calibration, AUROC and average precision are those of"
            f" {evaluation.ranked:,} of the {evaluation.samples:,} images, whose logits fit into memory."
        )
    calibration = calibrate(outcome.logits, outcome.labels, seed=trained_on.splitting.seed)
    thresholds = fit_thresholds(*sample.join(), spec=trained.spec, temperature=calibration.temperature)
    probed = probe_start(
        folder,
        trained.spec,
        replace(images, split="train"),
        source,
        device=trained.device,
        batch_size=batch_size,
        workers=workers,
    )
    if isinstance(probed, str):
        notes.append(probed)
        probed = None
    worst = worst_errors(outcome, temperature=calibration.temperature, most=WORST)
    study = study_branches(outcome, most=EXAMPLES)
    shown = dict.fromkeys(worst)
    if study is not None:
        shown |= dict.fromkeys(row for case in study.cases.values() for row in case.rows)
    return Findings(
        folder=folder,
        data=data,
        moved=data != trained_on.data,
        seed=trained_on.splitting.seed,
        settings=settings,
        config_text=(folder / CONFIG_FILE).read_text(encoding="utf-8"),
        rows=rows,
        weights=trained.path.name,
        spec=trained.spec,
        parameters=trained.runtime.parameters,
        device=_device_name(trained.device),
        evaluation=evaluation,
        calibration=calibration,
        thresholds=thresholds,
        outcome=outcome,
        worst=worst,
        study=study,
        images=thumbnails(
            shown,
            outcome,
            source,
            explainer=Explainer(folder, device=device),
            batch_size=batch_size,
            workers=workers,
        ),
        probe=probed,
        notes=notes,
    )


def _check_same_images(folder: Path, data: str, source: ImageSource | ImageStream) -> None:
    """Refuse other images than the run's: their report would replace the run's own, and its temperature."""
    known = (read_results(folder) or {}).get("val_fingerprint")
    if known is not None and isinstance(source, ImageSource) and fingerprint(source) != known:
        raise UserError(
            f"{data} holds other validation images than {folder} was trained with, and its report would"
            f" replace that of the run; use 'conformer-vision evaluate {folder} {option('data')} {data}'"
        )


def store_calibration(path: Path, fitted: Calibrated) -> None:
    """Store what was fitted in a run's weights, and in its other file of weights if they are the same."""
    save_calibration(path, fitted)
    for name in (BEST_WEIGHTS, LAST_WEIGHTS):
        other = path.with_name(name)
        if name != path.name and other.is_file() and _same_weights(path, other):
            save_calibration(other, fitted)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of ``metrics.csv``, empty fields as NaN; no rows if there is no such file.

    Raises:
        UserError: the file is not a table of numbers.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {name: float(value) if value else math.nan for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} is not a table of numbers ({error}); restore or remove it") from error
    if rows and "epoch" not in rows[0]:
        raise UserError(f"{path} has no column epoch; restore or remove it")
    return rows


def _notes(settings: RunSettings, trained: TrainedModel) -> tuple[list[str], str | None]:
    """Return the notes at the top of the page, and the run's exclusion list if it still exists."""
    notes = []
    if trained.path.name != BEST_WEIGHTS:
        notes.append(f"Training ended before its first validation, so {trained.path.name} is evaluated.")
    if settings.ema_decay is not None:
        notes.append(
            f"The weights are an exponential moving average over the steps (decay {settings.ema_decay:g}); "
            "validation during training evaluated the average too."
        )
    exclude = settings.exclude
    if exclude is not None and not Path(exclude).is_file():
        notes.append(f"The exclusion list {exclude} is gone, so all images are evaluated.")
        exclude = None
    elif exclude is not None:
        notes.append(f"The images listed in {exclude} are left out, as in training.")
    return notes, exclude


def _same_weights(first: Path, second: Path) -> bool:
    try:
        one, two = load_file(first), load_file(second)
    except Exception:  # the other file is damaged, which does not concern the report
        return False
    return one.keys() == two.keys() and all(
        tensor.dtype == two[name].dtype and torch.equal(tensor, two[name]) for name, tensor in one.items()
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
