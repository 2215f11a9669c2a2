"""How the pages write numbers and names."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

from markupsafe import Markup, escape

from conformer_vision.inference.intervals import Figure


def percent(share: float | None) -> str:
    """Format 0.1234 as ``12.3 %``, None as a dash."""
    return "–" if share is None else f"{100 * share:.1f} %"


def interval(figure: Figure) -> str:
    """Format the interval of a share as ``[78.2, 97.1]``, nothing where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    return f"[{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def title_case(words: str) -> str:
    """Begin with a capital letter, but for abbreviations such as mAP; the rest stays."""
    return words if words[1:2].isupper() else words[:1].upper() + words[1:]


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


def short(name: str) -> str:
    """Return the last two parts of a path; other names are unchanged."""
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def whole_percent(share: float) -> str:
    """Format 0.95 as ``95 %``, for shares that are chosen and not found."""
    return f"{100 * share:.4g} %"


def share_text(figure: Figure) -> str:
    """Format a share with its interval as ``98.3 % [95.2, 99.4]``, an undefined one as a dash."""
    return f"{percent(figure.value)} {interval(figure)}".strip()


def ranged(text: str) -> Markup:
    """Mark the interval behind a figure, so that a narrow page can put it on a line of its own."""
    value, bracket, rest = text.partition(" [")
    return escape(value) + (Markup('<span class="range"> [{}</span>').format(rest) if bracket else "")


def sentence(words: str) -> str:
    """Begin with a capital letter."""
    return words[:1].upper() + words[1:]


def tag(classes: str) -> Markup:
    """Return the attribute ``class``, nothing for no classes."""
    return Markup(' class="{}"').format(classes.strip()) if classes.strip() else Markup("")


FILTERS: dict[str, Callable[..., str]] = {
    "percent": percent,
    "interval": interval,
    "title_case": title_case,
    "points": points,
    "number": number,
    "duration": duration,
    "whole_percent": whole_percent,
    "share_text": share_text,
    "ranged": ranged,
    "sentence": sentence,
    "tag": tag,
    "short": short,
}
"""By their names in the templates."""
