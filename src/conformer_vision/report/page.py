"""The page of a report: from the findings to what the template shows."""

from __future__ import annotations

import math
import platform
import shlex
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from statistics import median
from typing import Any

import timm
import torch

import conformer_vision
from conformer_vision import pages
from conformer_vision.report.analysis import CASES, Choices, class_rows, confused_pairs
from conformer_vision.report.charts import curves, reliability_diagram
from conformer_vision.report.findings import Findings
from conformer_vision.runs import CONFIG_FILE

MAX_MATRIX = 40
"""Most classes for which the confusion matrix is drawn; with more, the list of confusions is clearer."""
MAX_PAIRS = 20
MAX_BROKEN = 100
MAX_EPOCHS = 200
"""Rows of the table of epochs; with more epochs, it shows evenly spaced ones."""

HEADS = {"fused": "Fused (the prediction)", "conv": "Convolution branch", "trans": "Transformer branch"}
CASE_TITLES = {
    "both": "Both branches right",
    "conv": "Only the convolution branch right",
    "trans": "Only the transformer branch right",
    "neither": "Both branches wrong",
}
_CASE_ORDERS = {
    "both": "the least certain predictions",
    "conv": "the most confident mistakes of the transformer branch",
    "trans": "the most confident mistakes of the convolution branch",
    "neither": "the images where both branches are most confident",
}


@dataclass(frozen=True)
class Guess:
    """The prediction of one head for an image."""

    head: str
    label: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Example:
    """An image with the predictions of all heads."""

    name: str
    short: str
    data: str | None
    true: str
    opinions: list[Guess]


def render(findings: Findings) -> str:
    """Render the page as HTML that needs no other file."""
    filters = {"percent": percent, "points": points, "number": number, "duration": duration}
    return pages.render(__package__, "report.html.j2", _context(findings), filters=filters)


def percent(share: float | None) -> str:
    """Format 0.1234 as ``12.3 %``, None as a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Format with one more digit than `percent`, for calibration errors, which are small."""
    return f"{100 * share:.2f} %"


def number(value: float | None) -> str:
    """Format four significant digits, or a whole number with commas; None and NaN as a dash."""
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Format hours, minutes and seconds as ``1:02:03``, None and NaN as a dash."""
    if seconds is None or math.isnan(seconds):
        return "–"
    return str(timedelta(seconds=round(seconds)))


def _context(findings: Findings) -> dict[str, Any]:
    evaluation, calibration = findings.evaluation, findings.calibration
    classes = evaluation.classes
    examples = _Examples(findings)
    after = calibration.after
    diagrams = [reliability_diagram(calibration.before, name="before", title="Before scaling")]
    if after is not None:
        diagrams.append(reliability_diagram(after, name="after", title="After scaling (cross-fitted)"))
    order = [head for head in HEADS if head in evaluation.top1]
    return {
        "title": findings.folder.resolve().name,
        "findings": findings,
        "evaluation": evaluation,
        "calibration": calibration,
        "spec": findings.spec,
        "classes": classes,
        "heads": [(HEADS[head] if len(order) > 1 else "Model", head) for head in order],
        "curves": curves(findings.rows),
        "epochs": _epochs(findings.rows),
        "diagrams": diagrams,
        "matrix": _matrix(findings) if len(classes) <= MAX_MATRIX else None,
        "max_matrix": MAX_MATRIX,
        "pairs": confused_pairs(evaluation.confusion, most=MAX_PAIRS),
        "class_rows": class_rows(evaluation.confusion),
        "worst": [examples.make(row) for row in findings.worst],
        "errors": evaluation.samples - sum(row[i] for i, row in enumerate(evaluation.confusion)),
        "cases": _cases(findings, examples),
        "study": findings.study,
        "training": _training(findings),
        "broken": findings.broken[:MAX_BROKEN],
        "more_broken": max(len(findings.broken) - MAX_BROKEN, 0),
        "commands": _commands(findings),
        "versions": {
            "conformer-vision": conformer_vision.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": version("lightning"),
            "Python": platform.python_version(),
        },
    }


class _Examples:
    """Makes examples from rows of the outcome."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        fused = findings.outcome.fused(findings.calibration.temperature)
        self._choices: dict[str, Choices] = {"fused": fused, **findings.outcome.branches}

    def make(self, row: int) -> Example:
        classes = self._findings.evaluation.classes
        label = int(self._findings.outcome.labels[row])
        image = self._findings.images[row]
        return Example(
            name=image.name,
            short=_short(image.name),
            data=image.data,
            true=classes[label],
            opinions=[
                Guess(head, classes[chosen], float(choices.probabilities[row]), chosen == label)
                for head, choices in self._choices.items()
                for chosen in (int(choices.classes[row]),)
            ],
        )


def _short(name: str) -> str:
    """Return the last two parts of a path; other names are unchanged."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(parts[-2:])


def _cases(findings: Findings, examples: _Examples) -> list[dict[str, Any]]:
    if findings.study is None:
        return []
    return [
        {
            "title": CASE_TITLES[name],
            "order": _CASE_ORDERS[name],
            "count": case.count,
            "fused_right": case.fused_right,
            "examples": [examples.make(row) for row in case.rows],
        }
        for name in CASES
        for case in (findings.study.cases[name],)
    ]


def _matrix(findings: Findings) -> list[list[tuple[int, float, bool]]]:
    """Return the cells of the confusion matrix: count, opacity of the colour, whether its text is light.

    The square root keeps single confusions visible beside a strong diagonal. The step at one half avoids
    medium colours, on which neither light nor dark text is legible.
    """
    rows = []
    for counts in findings.evaluation.confusion:
        total = sum(counts)
        row = []
        for count in counts:
            share = count / total if total else 0.0
            strong = share > 0.5
            opacity = 0.78 + 0.44 * (share - 0.5) if strong else 0.45 * math.sqrt(2 * share)
            row.append((count, round(opacity, 3), strong))
        rows.append(row)
    return rows


def _epochs(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    if len(rows) <= MAX_EPOCHS:
        return rows
    step = (len(rows) - 1) / (MAX_EPOCHS - 1)
    return [rows[round(i * step)] for i in range(MAX_EPOCHS)]


def _training(findings: Findings) -> dict[str, float | int | None]:
    """Collect speed and memory of training, as far as ``metrics.csv`` has them."""
    settings, rows = findings.settings, findings.rows

    def column(name: str) -> list[float]:
        return [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]

    speeds, seconds, waiting = (column(name) for name in ("images_per_second", "seconds", "waiting"))
    memory = column("peak_memory_mb")
    batch = settings.batch_size if isinstance(settings.batch_size, int) else None
    devices = settings.devices if isinstance(settings.devices, int) else 1
    pass_size = None if batch is None else max(batch // (settings.accumulate * devices * settings.nodes), 1)
    peak = max(memory) if memory else None
    return {
        "epochs": int(rows[-1]["epoch"]) if rows else None,
        "steps": int(rows[-1]["step"]) if column("step") else None,
        "seconds": seconds[-1] if seconds else None,
        "speed": median(speeds) if speeds else None,
        "waiting": median(waiting) if waiting else None,
        "pass_size": pass_size,
        "peak_memory_mb": peak,
        "memory_per_image": None if peak is None or pass_size is None else peak / pass_size,
    }


def _commands(findings: Findings) -> dict[str, str]:
    run = str(findings.folder)
    data = shlex.quote(findings.data)
    recipe = shlex.quote(str(findings.folder / CONFIG_FILE))
    moved = f" --data {data}" if findings.moved else ""
    output = shlex.quote(f"{run.rstrip('/')}-again")
    return {
        "train": f"conformer-vision train --recipe {recipe}{moved} --output {output}",
        "evaluate": f"conformer-vision evaluate {shlex.quote(run)} --data {data}",
        "report": f"conformer-vision report {shlex.quote(run)}{moved}",
    }
