"""What sets models of one label per image apart from those of any number of labels, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformer_vision.inference.figures import Metric
from conformer_vision.inference.fit import FittedClasses, FittedThresholds, fit_multilabel, fit_thresholds
from conformer_vision.inference.heads import Kind, OneLabel, SeveralLabels
from conformer_vision.inference.metrics import CLASS_METRICS, METRICS, head_figures
from conformer_vision.inference.multilabel_metrics import (
    MULTILABEL_CLASS_METRICS,
    MULTILABEL_METRICS,
    multilabel_figures,
)
from conformer_vision.spec import ModelSpec


@dataclass(frozen=True)
class Task:
    """How answers are collected, what their figures are, and what is fitted to validation images."""

    kind: Kind[Any]
    """How the answers of a head are summed up."""
    figures: Callable[..., dict[str, Any]]
    """Computes the figures of all heads from answers and the names of the classes."""
    metrics: tuple[Metric, ...]
    """Of a head."""
    class_metrics: tuple[Metric, ...]
    """Of every class."""
    fit: Callable[..., FittedThresholds | FittedClasses]
    """Fits thresholds, as `fit_thresholds` does."""


def task_of(spec: ModelSpec) -> Task:
    """Return the task of a model."""
    if spec.multilabel:
        kind = SeveralLabels(spec.class_thresholds, temperature=spec.temperature)
        return Task(kind, multilabel_figures, MULTILABEL_METRICS, MULTILABEL_CLASS_METRICS, fit_multilabel)
    return Task(OneLabel(), head_figures, METRICS, CLASS_METRICS, fit_thresholds)
