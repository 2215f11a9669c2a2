"""A run that is to be reported on: its settings, its model and its validation images."""

from __future__ import annotations

import csv
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conformer_vision.data import ImageSource, ImageStream
from conformer_vision.data.base import class_counts, fingerprint
from conformer_vision.errors import UserError, option
from conformer_vision.inference.labelled import LabelledImages, read_run_data
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.report.findings import Note, RunSettings
from conformer_vision.runs import (
    BEST_WEIGHTS,
    BROKEN_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    fold_folders,
    read_results,
)


@dataclass(frozen=True)
class OpenedRun:
    """What every report begins with."""

    folder: Path
    settings: RunSettings
    rows: list[dict[str, float]]
    """Rows of ``metrics.csv``, one per epoch."""
    trained: TrainedModel
    data: str
    moved: bool
    """Whether the run's configuration names other data."""
    images: LabelledImages
    """The validation images, and how they are cut from the data."""
    source: ImageSource | ImageStream
    """The validation images, open."""
    notes: list[Note]

    @property
    def seed(self) -> int:
        """The seed of the split."""
        return self.images.splitting.seed

    @property
    def config_text(self) -> str:
        """The text of ``config.yaml``."""
        return (self.folder / CONFIG_FILE).read_text(encoding="utf-8")

    @property
    def device(self) -> str:
        """The name of the device."""
        return _device_name(torch.device(self.trained.runtime.device))


def open_run(folder: Path, *, data: str | None, device: str | torch.device) -> OpenedRun:
    """Open a run and its validation images.

    Args:
        folder: A run folder.
        data: The run's data if it has moved.
        device: ``auto`` or a torch device.

    Raises:
        UserError: As `write_report`.
    """
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
    return OpenedRun(folder, settings, rows, trained, data, data != trained_on.data, images, source, notes)


def _check_same_images(folder: Path, data: str, source: ImageSource | ImageStream) -> None:
    """Refuse other images than the run's: their report would replace the run's own, and its temperature."""
    known = (read_results(folder) or {}).get("val_fingerprint")
    if known is not None and isinstance(source, ImageSource) and fingerprint(source) != known:
        raise UserError(
            f"{data} holds other validation images than {folder} was trained with, and its report would"
            f" replace that of the run; use 'conformer-vision evaluate {folder} {option('data')} {data}'"
        )


def class_sizes(run: OpenedRun, validation: NDArray[np.integer[Any]]) -> dict[str, dict[str, int]]:
    """Return how often every class is in each split.

    Args:
        run: The run; its training images are counted unless they come from a stream or are not there, as
            those of data that moved need not be.
        validation: (K,), of the validation images that could be read.
    """
    sizes: dict[str, NDArray[np.integer[Any]]] = {}
    if isinstance(run.source, ImageSource):
        with suppress(UserError):
            images = replace(run.images, split="train").open(run.trained.spec)
            assert isinstance(images, ImageSource)
            sizes["Training"] = class_counts(images)
    sizes["Validation"] = validation
    classes = run.trained.spec.classes
    return {split: dict(zip(classes, counts.tolist(), strict=True)) for split, counts in sizes.items()}


def broken_in_training(folder: Path, known: list[str]) -> list[str]:
    """Return the lines of ``broken_images.txt`` that the evaluation does not have too."""
    path = folder / BROKEN_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [line for line in lines if line not in set(known)]


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


def _notes(settings: RunSettings, trained: TrainedModel) -> tuple[list[Note], str | None]:
    """Return the notes at the top of the page, and the run's exclusion list if it still exists."""
    notes = []
    if trained.path.name != BEST_WEIGHTS:
        text = f"Training ended before its first validation, so {trained.path.name} is evaluated."
        notes.append(Note(text, warning=True))
    if settings.ema_decay is not None:
        text = (
            f"The weights are an exponential moving average over the steps (decay {settings.ema_decay:g}); "
            "validation during training evaluated the average too."
        )
        notes.append(Note(text))
    exclude = settings.exclude
    if exclude is not None and not Path(exclude).is_file():
        text = f"The exclusion list {exclude} is gone, so all images are evaluated."
        notes.append(Note(text, warning=True))
        exclude = None
    elif exclude is not None:
        notes.append(Note(f"The images listed in {exclude} are left out, as in training."))
    return notes, exclude


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
