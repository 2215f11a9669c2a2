"""The colours of pages and charts, in one place, so that a colour means the same everywhere."""

from __future__ import annotations

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour on a light and on a dark ground."""

    light: str
    dark: str


PALETTE = {
    "page": Colour("#f4f5f7", "#0d0f12"),
    "surface": Colour("#ffffff", "#16191d"),
    "ink": Colour("#14171a", "#e8eaed"),
    "muted": Colour("#566070", "#a3acb9"),
    "line": Colour("#d8dce3", "#2d333b"),
    "track": Colour("#e8ebf0", "#262b32"),
    "conv": Colour("#2558d4", "#7ba6ff"),
    "trans": Colour("#b8430b", "#ff9a57"),
    "fused": Colour("#12703a", "#5fd68b"),
    "good": Colour("#12703a", "#5fd68b"),
    "bad": Colour("#b3201b", "#ff8a80"),
    "warn": Colour("#fff6dd", "#2a2410"),
    "warn-line": Colour("#b07d00", "#d9a514"),
}
"""By name: grounds, text and lines; the heads; right and wrong; warnings."""
LIGHT = {name: colour.light for name, colour in PALETTE.items()}
"""For images, which do not follow the reader's choice of light and dark."""
