"""What a run came to: `results.json`, and the lines that sum it up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import atomic_path
from ..inference.intervals import Figure, share
from ..runs import RESULTS_FILE, read_results
from .callbacks import Row, by_head
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
    """Return an epoch's row in the form of `results.json`: top-1 and top-5 by head, with their intervals."""
    found: Json = {"epoch": int(row["epoch"]), "step": int(row["step"]), "val_loss": _finite(row["val_loss"])}
    for name in ("top1", "top5"):
        if heads := by_head(row, name):
            found[name] = {head: asdict(figure) for head, figure in heads.items()}
    return found


def by_class(classes: Sequence[str], counts: tuple[list[int], list[int]]) -> Json:
    """Return images, correct answers and recall by class, and the class with the lowest recall.

    Args:
        classes: names of the classes.
        counts: validation images, and correct answers of the fused head; one each per class.
    """
    images, correct = counts
    found: Json = {
        name: {"images": many, "correct": right, "recall": asdict(share(right, many))}
        for name, many, right in zip(classes, images, correct, strict=True)
    }
    shares = {name: right / many for name, many, right in zip(classes, images, correct, strict=True) if many}
    weakest = min(shares, key=lambda name: shares[name], default=None)
    return {"weakest_class": weakest, "classes": found}


def closing_lines(results: Mapping[str, Any]) -> list[str]:
    """Return what the end of a run prints: the best epoch and its weakest class."""
    best = results.get("best")
    if best is None:
        return []
    figures = {head: Figure(**values) for head, values in best["top1"].items()}
    lines = [f"best: {top1_text(figures)} in epoch {best['epoch']} of {results['epochs']}"]
    if (name := best.get("weakest_class")) is not None:
        counts = best["classes"][name]
        lines.append(f"weakest class: {name}, {counts['correct']} of {counts['images']} images right")
    return lines


def top1_text(figures: Mapping[str, Figure]) -> str:
    """Write top-1 of the prediction with its interval, and of the branches."""
    fused = figures["fused"]
    text = "top-1 -" if fused.value is None else f"top-1 {fused.value:.1%}"
    if fused.low is not None and fused.high is not None:
        text += f" [{100 * fused.low:.1f}, {100 * fused.high:.1f}]"
    branches = [f"{head} {100 * (each.value or 0):.1f}" for head, each in figures.items() if head != "fused"]
    return text + (f" ({', '.join(branches)})" if branches else "")


def _finite(value: float) -> float | None:
    """JSON has no infinity and no not-a-number."""
    return value if abs(value) < float("inf") else None
