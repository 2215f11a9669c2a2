"""The page of a report: from the findings to what the template shows."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import timm
import torch

import conformer_vision
from conformer_vision import pages
from conformer_vision.inference.confusion import Confusion, confused_pairs, shown_classes
from conformer_vision.inference.intervals import UNDEFINED
from conformer_vision.inference.metrics import CLASS_METRICS, METRICS
from conformer_vision.plotting import PANELS
from conformer_vision.report.analysis import class_rows
from conformer_vision.report.charts import curves, reliability_diagram, risk_coverage_chart
from conformer_vision.report.findings import Findings
from conformer_vision.report.formats import FILTERS
from conformer_vision.runs import CONFIG_FILE

MATRIX = (10, 20, 40)
"""Most classes in the confusion matrix of a narrow, a medium and a wide page; of more, the most confused ones
are shown."""
MAX_PAIRS = 20
SHOWN_FIRST = 8
"""Worst errors that are shown at once; the others can be unfolded."""

HEADS = {"fused": "Fused (the prediction)", "conv": "Convolution branch", "trans": "Transformer branch"}
FEATURES = {
    "conv": "Pooled feature map",
    "trans": "Class token",
    "both": "Both",
    "all": "Features",
}
CASES = {
    "both": ("Both branches right", "the least certain predictions"),
    "conv": (
        "Only the convolution branch right",
        "the most confident mistakes of the transformer branch",
    ),
    "trans": (
        "Only the transformer branch right",
        "the most confident mistakes of the convolution branch",
    ),
    "neither": ("Both branches wrong", "the images where both branches are most confident"),
}
"""Title of each case, and which of its images are shown."""


class Section(NamedTuple):
    """A section of the page; its template is called like it."""

    name: str
    title: str


class Guess(NamedTuple):
    """The prediction of one head for an image."""

    head: str
    label: str
    probability: float
    right: bool


def render(findings: Findings) -> str:
    """Render the page as HTML that needs no other file."""
    return pages.render(__package__, "report.html.j2", _context(findings), filters=FILTERS)


def _sections(findings: Findings) -> list[Section]:
    """Return the sections in the order of a reader's questions."""
    sections = [
        Section("result", "What came out"),
        Section("errors", "Worst errors"),
        Section("confusion", "Confusion"),
        Section("classes", "Figures per class"),
        Section("branches", "The two branches"),
        Section("calibration", "Calibration and unsure answers"),
        Section("data", "Data"),
        Section("run", "Run and reproduction"),
    ]
    return [each for each in sections if each.name != "branches" or findings.study is not None]


def _context(findings: Findings) -> dict[str, Any]:
    evaluation, calibration = findings.evaluation, findings.calibration
    diagrams = [reliability_diagram(calibration.before, name="before", title="Before scaling")]
    if calibration.after is not None:
        title = "After scaling (cross-fitted)"
        diagrams.append(reliability_diagram(calibration.after, name="after", title=title))
    if findings.selective is not None:
        found = findings.selective
        diagrams.append(risk_coverage_chart(found.risks, found.answered.value))
    shown = shown_classes(evaluation.confusion, evaluation.classes, most=MATRIX[-1])
    order = [head for head in HEADS if head in evaluation.heads]
    return {
        "findings": findings,
        "evaluation": evaluation,
        "fused": evaluation.heads["fused"],
        "examined": len(findings.outcome.labels),
        "calibration": calibration,
        "spec": findings.spec,
        "study": findings.study,
        "probe": findings.probe,
        "features": FEATURES,
        "classes": evaluation.classes,
        "metrics": [
            metric
            for metric in METRICS
            if metric.name != "top5" or evaluation.heads["fused"].top5 != UNDEFINED
        ],
        "class_metrics": CLASS_METRICS[:3],
        "heads": [(HEADS[head] if len(order) > 1 else "Model", head) for head in order],
        "sections": _sections(findings),
        "curves": curves(findings.rows),
        "columns": _columns(findings.rows),
        "diagrams": diagrams,
        "shown": shown,
        "tier": _tiers(evaluation.confusion, shown, evaluation.classes),
        "matrix": _matrix(evaluation.confusion, shown),
        "shown_first": SHOWN_FIRST,
        "unit": "images",
        "pairs": confused_pairs(evaluation.confusion)[:MAX_PAIRS],
        "class_rows": class_rows(evaluation),
        "errors": sum(pair.images for pair in confused_pairs(evaluation.confusion)),
        "cases": CASES,
        "guesses": _guesses(findings),
        "training": _training(findings),
        "commands": _commands(findings),
        "versions": {
            "conformer-vision": conformer_vision.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": version("lightning"),
            "Python": platform.python_version(),
        },
    }


def _columns(rows: list[dict[str, float]]) -> list[tuple[str, str, bool]]:
    """Return the columns of the curves that the rows have, each with a title and whether it is a share."""
    return [
        (column, f"{panel.title}, {line.legend}" if line.legend else panel.title, panel.percent)
        for panel in PANELS
        for column, line in panel.lines.items()
        if rows and column in rows[-1]
    ]


def _tiers(confusion: Confusion, shown: list[str], classes: Sequence[str]) -> dict[str, str]:
    """Return for each class of the matrix the style classes that hide it on pages that are too narrow."""
    kept = {most: set(shown_classes(confusion, classes, most=most)) for most in MATRIX[:-1]}
    return {
        name: " ".join(f"over-{most}" for most, names in kept.items() if name not in names) for name in shown
    }


def _guesses(findings: Findings) -> dict[int, list[Guess]]:
    """Return the predictions of every head for the images that are shown, by row."""
    classes, outcome = findings.evaluation.classes, findings.outcome
    choices = {"fused": outcome.fused(findings.calibration.temperature), **outcome.branches}
    guesses = {}
    for row in findings.images:
        label = int(outcome.labels[row])
        chosen = {head: int(choice.classes[row]) for head, choice in choices.items()}
        guesses[row] = [
            Guess(head, classes[found], float(choices[head].probabilities[row]), found == label)
            for head, found in chosen.items()
        ]
    return guesses


def _matrix(confusion: Confusion, shown: list[str]) -> list[tuple[str, list[tuple[int, float, bool]]]]:
    """Return each shown class with its cells: count, opacity of the colour, whether its text is light.

    The square root keeps single confusions visible beside a strong diagonal. The step at one half avoids
    medium colours, on which neither light nor dark text is legible.
    """
    rows = []
    for true in shown:
        counts = confusion.get(true, {})
        total = sum(counts.values())
        cells = []
        for predicted in shown:
            count = counts.get(predicted, 0)
            share = count / total if total else 0.0
            strong = share > 0.5
            opacity = 0.78 + 0.44 * (share - 0.5) if strong else 0.45 * math.sqrt(2 * share)
            cells.append((count, round(opacity, 3), strong))
        rows.append((true, cells))
    return rows


def _training(findings: Findings) -> dict[str, float | int | None]:
    """Collect speed and memory of training, as far as ``metrics.csv`` has them."""
    settings, rows = findings.settings, findings.rows

    def column(name: str) -> list[float]:
        return [row[name] for row in rows if not math.isnan(row.get(name, math.nan))]

    batch = settings.batch_size if isinstance(settings.batch_size, int) else None
    devices = settings.devices if isinstance(settings.devices, int) else 1
    pass_size = None if batch is None else max(batch // (settings.accumulate * devices * settings.nodes), 1)
    speeds, waiting = column("images_per_second"), column("waiting")
    return {
        "epochs": int(rows[-1]["epoch"]) if rows else None,
        "steps": int(rows[-1]["step"]) if column("step") else None,
        "seconds": max(column("seconds"), default=None),
        "speed": median(speeds) if speeds else None,
        "waiting": median(waiting) if waiting else None,
        "pass_size": pass_size,
        "peak_memory_mb": max(column("peak_memory_mb"), default=None),
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
