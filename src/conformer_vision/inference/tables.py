"""Figures of an evaluation as rows of text, for the terminal and for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from conformer_vision.inference.figures import FiguresOfHead, Metric
from conformer_vision.inference.intervals import UNDEFINED

MOST_CLASSES = 20
"""Classes that are shown; of more, those with the lowest F1."""


class Table(NamedTuple):
    """Text in rows."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def table_of_heads(
    heads: Mapping[str, FiguresOfHead[Any]], metrics: Sequence[Metric], *, drawn: str
) -> Table:
    """Return every figure of every head, the prediction first.

    Args:
        heads: Their figures, with ``fused``.
        metrics: Those of a head; one that a set of few classes does not have is left out.
        drawn: What the intervals are for the choice of.
    """
    heads = {"fused": heads["fused"], **heads}
    rows = []
    for metric in metrics:
        if metric.name != "top5" or heads["fused"].of(metric) != UNDEFINED:
            title = f"{metric.title}, %" if metric.percent else metric.title
            rows.append((title, *(metric.text(figures.of(metric)) for figures in heads.values())))
    return Table(f"in brackets: 95 % intervals for the choice of {drawn}", ("", *heads), rows)


def table_of_classes(figures: FiguresOfHead[Any], metrics: Sequence[Metric]) -> Table:
    """Return the figures of every class, or of those with the lowest F1, in the order of the classes."""
    filled = {name: each for name, each in figures.classes.items() if each is not None}
    lowest = sorted(filled, key=lambda name: filled[name].f1.value or 0.0)[:MOST_CLASSES]
    title = "by class, %"
    if len(filled) > MOST_CLASSES:
        title = f"the {len(lowest)} classes of {len(figures.classes):,} with the lowest F1, %"
    shown = metrics[:3]
    rows = [
        (name, f"{each.images:,}", *(metric.text(each.of(metric)) for metric in shown))
        for name, each in filled.items()
        if name in lowest
    ]
    return Table(title, ("class", "images", *(metric.title for metric in shown)), rows)
