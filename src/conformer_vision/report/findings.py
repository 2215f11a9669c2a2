"""What was found out about a run: the contents of its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from conformer_vision.inference.calibration import Calibration
from conformer_vision.inference.evaluation import Evaluation
from conformer_vision.report.analysis import BranchStudy, Outcome
from conformer_vision.report.images import Thumbnail
from conformer_vision.spec import ModelSpec
from conformer_vision.training.config import TrainConfig


@dataclass(frozen=True)
class Findings:
    """All that a report says."""

    folder: Path
    data: str
    """The source that was measured."""
    config: TrainConfig
    config_text: str
    rows: list[dict[str, float]]
    """Of ``metrics.csv``, one per epoch."""
    weights: str
    """Name of the file with the weights."""
    spec: ModelSpec
    """With the temperature that was fitted."""
    parameters: int | None
    device: str
    evaluation: Evaluation
    calibration: Calibration
    outcome: Outcome
    worst: list[int]
    """Rows of the outcome."""
    study: BranchStudy | None
    images: dict[int, Thumbnail]
    """Of the rows in ``worst`` and ``study``."""
    notes: list[str]
    """What a reader should know before the numbers."""

    @property
    def broken(self) -> list[str]:
        """One line for each image that could not be read."""
        return self.evaluation.broken
