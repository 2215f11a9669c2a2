"""The page of a comparison: figures side by side, changed options, curves, the images that changed sides."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from conformer_vision import pages
from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.inference.comparison import Turn
from conformer_vision.inference.metrics import METRICS
from conformer_vision.report.charts import curves_of_two
from conformer_vision.report.comparing import Comparison
from conformer_vision.report.formats import FILTERS

MOST = 24
"""Images that are shown for each way of changing sides."""
EDGE = 192
"""Longest edge of a thumbnail, in pixels."""
_HEADS = {"fused": "The prediction", "conv": "Convolution head", "trans": "Transformer head"}


def write_compared(path: str | Path, comparison: Comparison) -> None:
    """Write the page.

    Args:
        path: The page.
        comparison: What it says.

    Raises:
        UserError: The file cannot be written.
    """
    context = {
        "comparison": comparison,
        "sides": {"A": comparison.a, "B": comparison.b},
        "heads": [(_HEADS[head], comparison.heads[head]) for head in _HEADS if head in comparison.heads],
        "metrics": METRICS,
        "curves": curves_of_two(comparison.a.rows, comparison.b.rows),
        "turned": [
            (group, title, turns, _cards(turns, comparison.source))
            for group, title, turns in (
                ("lost", "Right by A, wrong by B", comparison.lost),
                ("won", "Wrong by A, right by B", comparison.won),
            )
        ],
        "today": date.today(),
    }
    pages.write_page(path, pages.render(__package__, "compared.html.j2", context, filters=FILTERS))


def _cards(turns: list[Turn], source: ImageSource) -> list[tuple[Turn, pages.Thumbnail]]:
    cards = []
    for turn in turns[:MOST]:
        try:
            data = pages.data_uri(source.image(turn.row), edge=EDGE)
        except BrokenImageError:  # readable a minute ago
            data = None
        cards.append((turn, pages.Thumbnail(turn.name, data)))
    return cards
