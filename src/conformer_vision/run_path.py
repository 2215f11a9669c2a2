"""The path of a run folder, which notebooks show with its figures, curves and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformer_vision import notebook
from conformer_vision.runs import CURVES_FILE, REPORT_FILE, is_run_folder, read_results

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12, Path itself cannot be subclassed

_SCORES = {"top1": "top-1, %", "top5": "top-5, %", "map": "mAP, %"}
_LARGEST = 24 << 20
"""Bytes of a report that a notebook still takes in."""


class Run(_Path):
    """The path of a run folder: what `train` returns.

    It is a `pathlib.Path`, which shows itself in notebooks: figures, curves and report, as far as they are
    there. ``Run("runs/photos")`` shows any run.
    """

    def _repr_html_(self) -> str | None:
        """Show the run in a notebook; any other path is shown as text."""
        if not is_run_folder(self):
            return None
        results = read_results(self) or {}
        parts = [notebook.title(str(self)), *_about(results), *_figures(results)]
        if (curves := _content(self / CURVES_FILE)) is not None:
            parts.append(notebook.png(curves, alt=f"Curves of loss and scores over the epochs of {self}"))
        if (report := _content(self / REPORT_FILE)) is not None:
            shown = notebook.page(report.decode("utf-8", "replace"), name=f"Report of {self}")
            parts.append(notebook.folded("Report", shown))
        return notebook.block(*parts)


def _content(path: Path) -> bytes | None:
    """Return what a file holds; None where it cannot be read or is too large."""
    try:
        return path.read_bytes() if path.stat().st_size <= _LARGEST else None
    except OSError:
        return None


def _about(results: Mapping[str, Any]) -> list[str]:
    if not results:
        return [notebook.line("no results yet", muted=True)]
    text = " on ".join(str(results[name]) for name in ("model", "data") if results.get(name))
    lines = [notebook.line(text, muted=True)] if text else []
    if not results.get("finished"):
        lines.append(notebook.warning("the run is not finished"))
    return lines


def _figures(results: Mapping[str, Any]) -> list[str]:
    """Return the figures of the best epoch, or of all folds together, with their intervals by head."""
    best, pooled, folds = (results.get(name) for name in ("best", "out_of_fold", "folds"))
    if isinstance(best, Mapping):
        by_score = {name: best[name] for name in _SCORES if isinstance(best.get(name), Mapping)}
        text = f"epoch {best.get('epoch')} of {results.get('epochs')}, the best"
        if best.get("weakest_class") is not None:
            text += f"; weakest class: {best['weakest_class']}"
    elif isinstance(pooled, Mapping) and isinstance(folds, list):
        of_heads = {head: own for head, own in pooled.items() if isinstance(own, Mapping)}
        by_score = {name: {head: own.get(name) for head, own in of_heads.items()} for name in _SCORES}
        text = f"{len(folds)} folds, each image answered by the fold that held it out"
    else:
        return []
    heads = sorted({head for own in by_score.values() for head in own}, key=lambda head: head != "fused")
    rows = [
        (title, *(_figure(by_score[name].get(head)) for head in heads))
        for name, title in _SCORES.items()
        if name in by_score
    ]
    shown = [row for row in rows if any(text != "-" for text in row[1:])]
    return [notebook.table(("", *heads), shown), notebook.line(text, muted=True)]


def _figure(values: object) -> str:
    """Write a figure of `results.json`, whose user may have edited it."""
    if not isinstance(values, Mapping):
        return "-"
    value, low, high = (values.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, (int, float)):
        return "-"
    text = f"{100 * value:.1f}"
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text
