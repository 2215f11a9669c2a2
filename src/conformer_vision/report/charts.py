"""Charts as inline SVG with the colours of the page, so that they follow light and dark mode."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conformer_vision.inference.calibration import Reliability

Row = Mapping[str, float]

# Placeholder colours for matplotlib, and the variables of the style sheet that replace them.
INK, MUTED, LINE, CONV, TRANS, SURFACE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", CONV: "conv", TRANS: "trans", SURFACE: "surface"}
_HEADS = {"fused": (INK, "-", 2.0), "conv": (CONV, "-", 1.5), "trans": (TRANS, "--", 1.5)}
_NAMES = {"fused": "fused", "conv": "convolution", "trans": "transformer"}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")


class Chart(NamedTuple):
    """A drawing and its title."""

    title: str
    svg: Markup


def curves(rows: Sequence[Row]) -> list[Chart]:
    """Draw loss, top-1 of every head and learning rate over the epochs, as far as the rows have them.

    Args:
        rows: one per epoch, as in ``metrics.csv``.
    """
    if not rows:
        return []
    heads = [name for name in _HEADS if f"val_top1_{name}" in rows[-1]]
    losses = [
        ("train_loss", "training", MUTED, "--", 1.5),
        ("val_loss", "validation", INK, "-", 2.0),
    ]
    return [
        chart
        for chart in (
            _curve(rows, losses, name="loss", title="Loss"),
            _curve(
                rows,
                [(f"val_top1_{h}", _NAMES[h] if len(heads) > 1 else "", *_HEADS[h]) for h in heads],
                name="top1",
                title="Validation top-1",
                percent=True,
            ),
            _curve(rows, [("lr", "", INK, "-", 2.0)], name="lr", title="Learning rate"),
        )
        if chart
    ]


def reliability_diagram(reliability: Reliability, *, name: str, title: str) -> Chart:
    """Draw the share of right predictions over their probability, and the number of predictions.

    Args:
        reliability: has the bins to draw.
        name: unique among the charts of a page.
        title: shown above the diagram.
    """
    figure = Figure(figsize=(4.0, 3.7), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    filled = [b for b in reliability.bins if b.count]
    width = reliability.bins[0].high - reliability.bins[0].low
    middles = [(b.low + b.high) / 2 for b in filled]
    upper.bar(middles, [b.accuracy for b in filled], width * 0.86, color=CONV, label="right predictions")
    upper.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
    upper.plot(
        [b.confidence for b in filled],
        [b.accuracy for b in filled],
        linestyle="",
        marker="o",
        markersize=4,
        markerfacecolor=SURFACE,
        markeredgecolor=INK,
        label="at mean probability",
    )
    total = sum(b.count for b in filled)
    lower.bar(middles, [b.count / total for b in filled], width * 0.86, color=MUTED)
    for axes in (upper, lower):
        _styled(axes)
        axes.yaxis.set_major_formatter(_PERCENT)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
    _legend(figure)
    lower.set(xlabel="probability of the prediction", ylabel="images", ylim=(0, None))
    lower.xaxis.set_major_formatter(_PERCENT)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    gap = f"{title}: expected calibration error {reliability.ece:.1%} over {len(filled)} filled bins."
    return Chart(title, _svg(figure, name=name, label=f"Reliability diagram. {gap}"))


def _curve(
    rows: Sequence[Row],
    series: Sequence[tuple[str, str, str, str, float]],
    *,
    name: str,
    title: str,
    percent: bool = False,
) -> Chart | None:
    """Draw columns (name, legend, colour, dashes, width) over the epochs; None without numbers."""
    figure = Figure(figsize=(4.0, 2.7), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for column, legend, colour, dashes, width in series:
        points = [(row["epoch"], row.get(column, math.nan)) for row in rows]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if not points:
            continue
        marker = "o" if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=width, marker=marker)
        axes.lines[-1].set_label(legend or "_")
        shown = f"{points[-1][1]:.1%}" if percent else f"{points[-1][1]:.4g}"
        ends.append(f"{legend or title} {shown} at the end")
    if not ends:
        return None
    _styled(axes)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(_PERCENT)
    if any(legend for _, legend, *_ in series):
        _legend(figure)
    label = f"{title} over {len(rows)} epochs: {', '.join(ends)}."
    return Chart(title, _svg(figure, name=name, label=label))


def _legend(figure: Figure) -> None:
    """Put the legend above the axes, where it covers nothing."""
    figure.legend(fontsize=8, frameon=False, labelcolor=INK, loc="outside upper left", ncols=3)


def _styled(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.xaxis.label.set(color=MUTED, fontsize=8)
    axes.yaxis.label.set(color=MUTED, fontsize=8)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)


def _svg(figure: Figure, *, name: str, label: str) -> Markup:
    """Return the figure without a fixed size, with ids that are unique on the page."""
    figure.patch.set_alpha(0)
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no links to vocabularies
    # Text stays text: the page's font, and readable to a screen reader. The salt makes ids repeatable.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would apply to the whole page
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}"'
    text = re.sub(r'^<svg((?: [\w:]+="[^"]*")*)', lambda match: head + _kept(match[1]), text, count=1)
    return Markup(text)  # numbers and our own words only; what comes from outside never gets here


def _kept(attributes: str) -> str:
    """Keep the view box of the SVG element's attributes; the page decides the size."""
    found = re.search(r' viewBox="[^"]*"', attributes)
    return found[0] if found else ""
