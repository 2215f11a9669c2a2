"""What a run came to: `results.json`, and the lines that sum it up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import atomic_path
from ..inference.intervals import Figure
from ..runs import RESULTS_FILE, read_results
from .callbacks import LEADING, Row, by_head
from .groups import ScheduleConfig

Json = dict[str, Any]


def write_results(results: Json, folder: Path) -> None:
    """Write `results.json`, in one step or not at all."""
    with atomic_path(folder / RESULTS_FILE) as temporary:
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")


def is_complete(folder: str | Path, schedule: ScheduleConfig) -> bool:
    """Tell whether a run has come to the end of its schedule."""
    results = read_results(folder)
    return results is not None and bool(results.get("finished")) and results.get("ends") == ends(schedule)


def ends(schedule: ScheduleConfig) -> Json:
    """Return what ends a run."""
    return {name: getattr(schedule, name) for name in ("epochs", "max_steps", "max_minutes", "patience")}


def scores(row: Row) -> Json:
    """Return an epoch's row in the form of `results.json`: its scores by head, with their intervals."""
    found: Json = {"epoch": int(row["epoch"]), "step": int(row["step"]), "val_loss": _finite(row["val_loss"])}
    for name in ("top1", "top5", "map"):
        if heads := by_head(row, name):
            found[name] = {head: asdict(figure) for head, figure in heads.items()}
    return found


def by_class(classes: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Json:
    """Return what is known of every class, and the class with the lowest figure.

    Args:
        classes: names of the classes.
        found: as in `scores.Summary`.
    """
    by_name = {name: dict(own) for name, own in zip(classes, found, strict=True)}
    ranked = {name: list(own.values())[-1]["value"] for name, own in by_name.items()}
    known = {name: value for name, value in ranked.items() if value is not None}
    weakest = min(known, key=lambda name: known[name], default=None)
    return {"weakest_class": weakest, "classes": by_name}


def closing_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what the end of a run prints: the best epoch and its weakest class."""
    best = results.get("best")
    if best is None:
        return []
    score = next(name for name in LEADING if name in best)
    figures = {head: Figure(**values) for head, values in best[score].items()}
    lines = [f"best: {score_text(score, figures)} in epoch {best['epoch']} of {results['epochs']}"]
    if (name := best.get("weakest_class")) is not None:
        found = best["classes"][name]
        if "correct" in found:
            text = f"{found['correct']} of {found['images']} images right"
        else:
            text = f"AP {found['average_precision']['value']:.1%}, {found['images']} images have it"
        lines.append(f"weakest class: {name}, {text}")
    return lines


def score_text(score: str, figures: Mapping[str, Figure]) -> str:
    """Write one of `LEADING` of the prediction with its interval, and of the branches."""
    fused, title = figures["fused"], LEADING[score]
    text = f"{title} -" if fused.value is None else f"{title} {fused.value:.1%}"
    if fused.low is not None and fused.high is not None:
        text += f" [{100 * fused.low:.1f}, {100 * fused.high:.1f}]"
    branches = [f"{head} {100 * (each.value or 0):.1f}" for head, each in figures.items() if head != "fused"]
    return text + (f" ({', '.join(branches)})" if branches else "")


def _finite(value: float) -> float | None:
    """JSON has no infinity and no not-a-number."""
    return value if abs(value) < float("inf") else None
