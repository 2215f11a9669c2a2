"""The page of a comparison: figures side by side, changed options, curves, the images that changed sides."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Card:
    """An image that changed sides."""

    turn: Turn
    thumbnail: str
    """Empty where it could not be read again."""


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
            ("Right by A, wrong by B", comparison.lost, _cards(comparison.lost, comparison.source)),
            ("Wrong by A, right by B", comparison.won, _cards(comparison.won, comparison.source)),
        ],
    }
    pages.write_page(path, pages.render(__package__, "compared.html.j2", context, filters=FILTERS))


def _cards(turns: list[Turn], source: ImageSource) -> list[Card]:
    cards = []
    for turn in turns[:MOST]:
        try:
            thumbnail = pages.data_uri(source.image(turn.row), edge=EDGE)
        except BrokenImageError:  # readable a minute ago
            thumbnail = ""
        cards.append(Card(turn, thumbnail))
    return cards
