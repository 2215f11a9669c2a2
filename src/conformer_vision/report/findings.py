"""The contents of the report of a run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple, get_type_hints

from conformer_vision.inference.calibration import Calibration
from conformer_vision.inference.evaluation import Evaluation
from conformer_vision.inference.fit import FittedThresholds
from conformer_vision.inference.probing import Probe
from conformer_vision.inference.selective import Selective
from conformer_vision.pages import Thumbnail
from conformer_vision.report.analysis import BranchStudy, Outcome
from conformer_vision.runs import REPORT_FILE, read_run_values
from conformer_vision.spec import ModelSpec


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that its report mentions; None where the configuration does not have them."""

    exclude: str | None = None
    ema_decay: float | None = None
    batch_size: int | str | None = None
    accumulate: int = 1
    devices: int | str = 1
    nodes: int = 1
    device: str | None = None
    precision: str | None = None

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """Read them from the ``config.yaml`` of a run folder.

        Raises:
            UserError: there is none, or a value has the wrong type.
        """
        return cls(**read_run_values(folder, get_type_hints(cls)))


class Note(NamedTuple):
    """What a reader should know before the numbers."""

    text: str
    warning: bool = False
    """Whether something is wrong, and not only worth knowing."""


@dataclass(frozen=True)
class Findings:
    """All that a report says."""

    folder: Path
    date: date
    """On which the images were evaluated."""
    data: str
    """The images that were evaluated."""
    moved: bool
    """Whether the run's configuration names other data."""
    seed: int
    settings: RunSettings
    config_text: str
    rows: list[dict[str, float]]
    """Rows of ``metrics.csv``, one per epoch."""
    weights: str
    """Name of the file with the weights."""
    spec: ModelSpec
    """Has the temperature that was fitted."""
    parameters: int | None
    device: str
    evaluation: Evaluation
    calibration: Calibration
    thresholds: FittedThresholds
    outcome: Outcome
    selective: Selective | None
    """What rejecting unsure answers brings, each image compared with the others; None without thresholds."""
    worst: list[int]
    """Rows of the outcome."""
    samples: list[int]
    """Rows of images of all kinds."""
    study: BranchStudy | None
    images: dict[int, Thumbnail]
    """By row, for those in ``worst``, ``samples`` and ``study``."""
    unsure: dict[int, str]
    """By row, why the answer is unsure, for those in ``images`` that are."""
    class_sizes: dict[str, dict[str, int]]
    """Split -> class -> images; no training images for a stream."""
    broken_in_training: list[str]
    """One line for each image that could not be read in training, without the validation images."""
    probe: Probe | None
    """Of the initial weights' features; None from scratch, for streams, and where the weights are gone."""
    notes: list[Note]

    @property
    def path(self) -> Path:
        """The page."""
        return self.folder / REPORT_FILE

    @property
    def summary(self) -> list[str]:
        """What the command prints."""
        evaluation, metric = self.evaluation, self.evaluation.metrics[0]
        figure = metric.text(evaluation.heads["fused"].of(metric))
        return [f"{metric.title} {figure} % of {evaluation.samples:,} images (in brackets: 95 % interval)"]

    @property
    def stored(self) -> str | None:
        """What of the thresholds is stored with the model, in words."""
        fitted = self.thresholds.thresholds
        if fitted is None:
            return None
        return f"reject threshold for {fitted.coverage:.0%} sure answers, stored with the model"

    @property
    def note(self) -> str | None:
        """Why there are no thresholds."""
        note = self.thresholds.note
        return None if note is None else f"no reject threshold: {note}"

    @property
    def broken(self) -> list[str]:
        """One line for each image that could not be read."""
        return self.evaluation.broken
