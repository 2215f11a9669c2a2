"""Pieces of HTML for notebooks, which show objects by their ``_repr_html_``.

Notebooks have themes of their own, and some remove style sheets: each piece has its style with it. Text keeps
the notebook's colour, and all other colours suit light and dark grounds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

COLOURS = {"fused": "#2a965a", "conv": "#5480e6", "trans": "#d0651f", "warn": "#b07d00", "muted": "#808080"}
"""Between those of the light and the dark page (`pages.palette`), with a contrast of 3 to both grounds."""
_TRACK = "rgba(128,128,128,.22)"
_CELL = "padding:2px 12px 2px 0;text-align:{};background:none;border:0"


class Bar(NamedTuple):
    """A name with a share, drawn as a bar."""

    name: str
    share: float
    head: str = "fused"


def block(*parts: str) -> str:
    """Put pieces below each other. TeX in the names of classes stays as it is."""
    style = "line-height:1.45;margin:.4em 0;max-width:60em;overflow-wrap:anywhere"
    return f'<div class="tex2jax_ignore mathjax_ignore" style="{style}">{"".join(parts)}</div>'


def title(text: str) -> str:
    """Write a heading."""
    return f"<div><strong><bdi>{escape(text)}</bdi></strong></div>"


def line(text: str, *, muted: bool = False) -> str:
    """Write a line of text."""
    style = ' style="opacity:.75"' if muted else ""
    return f"<div{style}><bdi>{escape(text)}</bdi></div>"


def warning(text: str) -> str:
    """Write a line that stands out."""
    style = f"border-left:3px solid {COLOURS['warn']};padding-left:8px;margin:4px 0"
    return f'<div style="{style}"><bdi>{escape(text)}</bdi></div>'


def bars(rows: Iterable[Bar]) -> str:
    """Draw shares as bars, with their percentages."""
    cells = []
    for name, share, head in rows:
        width = 100 * min(max(share, 0.0), 1.0)
        fill = f"display:block;height:100%;width:{width:.2f}%;background:{COLOURS[head]}"
        track = f"height:10px;background:{_TRACK};border-radius:5px;overflow:hidden"
        cells.append(
            f"<bdi>{escape(name)}</bdi>"
            f'<span aria-hidden="true" style="{track}"><span style="{fill}"></span></span>'
            f'<span style="text-align:right">{100 * share:.1f} %</span>'
        )
    grid = "display:grid;grid-template-columns:fit-content(24em) minmax(40px,240px) max-content"
    return f'<div style="{grid};gap:2px 10px;align-items:center">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; its first column is text, the others are numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} style="{_CELL.format("right" if column else "left")}"><bdi>{escape(value)}</bdi></{tag}>'
            for column, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    style = "border-collapse:collapse;margin:6px 0;font-variant-numeric:tabular-nums"
    head = f"<thead><tr>{cells('th', header)}</tr></thead>" if any(header) else ""
    return f'<table style="{style}">{head}<tbody>{body}</tbody></table>'


def folded(summary: str, content: str) -> str:
    """Hide a piece until its summary is chosen."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def png(data: bytes, *, alt: str) -> str:
    """Show an image of PNG's format, on white."""
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img src="{uri}" alt="{escape(alt)}" style="max-width:100%;background:#fff">'


def page(html: str, *, name: str) -> str:
    """Show a whole page in a frame in which no script runs."""
    style = "width:100%;height:640px;border:1px solid rgba(128,128,128,.4);border-radius:6px"
    return f'<iframe sandbox title="{escape(name)}" srcdoc="{escape(html)}" style="{style}"></iframe>'
