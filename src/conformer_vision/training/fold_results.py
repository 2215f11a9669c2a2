"""What the folds of a cross-validation came to: each alone, their mean, and all held-out images together."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from ..console import say, show_table
from ..inference.figures import FiguresOfHead, Metric
from ..inference.intervals import UNDEFINED
from ..inference.out_of_fold import OutOfFold
from ..inference.task import task_of
from ..runtime.base import FUSED


@dataclass(frozen=True)
class FoldScores:
    """The figures of every fold and of all images together, by head."""

    folds: list[dict[str, FiguresOfHead[Any]]]
    pooled: dict[str, FiguresOfHead[Any]]
    """Of all images, each answered by the fold that held it out."""
    images: list[int]
    """Number of images that each fold held out."""
    temperature: float
    metrics: tuple[Metric, ...]

    def spread(self, head: str, metric: Metric) -> tuple[float, float] | None:
        """Return mean and sample standard deviation over the folds; None where a fold has no such figure."""
        values = [figures[head].of(metric).value for figures in self.folds]
        known = [value for value in values if value is not None]
        return (fmean(known), stdev(known)) if len(known) == len(values) else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it for `results.json`."""
        spreads = {
            head: {metric.name: self.spread(head, metric) for metric in self.metrics} for head in self.pooled
        }
        return {
            "images": sum(self.images),
            "folds": [
                {"fold": fold, "images": images} | {head: self._plain(own) for head, own in figures.items()}
                for fold, (images, figures) in enumerate(zip(self.images, self.folds, strict=True))
            ],
            "mean": {head: {k: v and v[0] for k, v in own.items()} for head, own in spreads.items()},
            "sd": {head: {k: v and v[1] for k, v in own.items()} for head, own in spreads.items()},
            "out_of_fold": {head: self._plain(own) for head, own in self.pooled.items()},
            "temperature": self.temperature,
        }

    def _plain(self, figures: FiguresOfHead[Any]) -> dict[str, Any]:
        return {metric.name: asdict(figures.of(metric)) for metric in self.metrics}


def score_folds(found: OutOfFold) -> FoldScores:
    """Compute the figures of the folds and of their images together."""
    task, classes = task_of(found.spec), found.spec.classes
    return FoldScores(
        [task.figures(part, classes) for part in found.parts],
        task.figures(found.answers, classes),
        [len(part.labels) for part in found.parts],
        found.spec.temperature,
        task.metrics,
    )


def say_folds(scores: FoldScores) -> None:
    """Print the mean over the folds beside the figures of all images together."""
    heads = {FUSED: scores.pooled[FUSED], **scores.pooled}  # the prediction first
    metrics = [each for each in scores.metrics if heads[FUSED].of(each) != UNDEFINED]
    titles = [f"{metric.title}, %" if metric.percent else metric.title for metric in metrics]
    say(f"mean ± standard deviation of {len(scores.folds)} folds")
    rows = [[_spread(scores, head, metric) for head in heads] for metric in metrics]
    show_table(("", *heads), [(title, *row) for title, row in zip(titles, rows, strict=True)])
    say(f"out of fold: {sum(scores.images):,} images, each answered by the fold that held it out")
    rows = [[metric.text(figures.of(metric)) for figures in heads.values()] for metric in metrics]
    show_table(("", *heads), [(title, *row) for title, row in zip(titles, rows, strict=True)])
    say("in brackets: 95 % intervals")


def _spread(scores: FoldScores, head: str, metric: Metric) -> str:
    found = scores.spread(head, metric)
    if found is None or not all(map(math.isfinite, found)):
        return "-"
    scale, digits = (100, 1) if metric.percent else (1, 3)
    return f"{scale * found[0]:.{digits}f} ± {scale * found[1]:.{digits}f}"
