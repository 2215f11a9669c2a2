"""Charts as inline SVG with the colours of the page, so that they follow light and dark mode."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conformer_vision.inference.calibration import Reliability

Row = Mapping[str, float]
Line = tuple[str, Mapping[str, Any]]
"""What a legend calls a line, and how it is drawn."""

# Placeholder colours for matplotlib, and the variables of the style sheet that replace them.
INK, MUTED, LINE, CONV, TRANS, SURFACE = (f"#0{i}0{i}0{i}" for i in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", CONV: "conv", TRANS: "trans", SURFACE: "surface"}
_TICKS = {"color": MUTED, "labelsize": 8, "major.size": 0}
_HEADS: dict[str, Line] = {
    "fused": ("fused", {"color": INK, "linewidth": 2.0}),
    "conv": ("convolution", {"color": CONV}),
    "trans": ("transformer", {"color": TRANS, "linestyle": "--"}),
}
_PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8,
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # text stays text: in the page's font, and readable to a screen reader
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}


class Chart(NamedTuple):
    """A drawing and its title."""

    title: str
    svg: Markup


@rc_context(_STYLE)
def curves(rows: Sequence[Row]) -> list[Chart]:
    """Draw loss, top-1 of every head and learning rate over the epochs, as far as the rows have them.

    Args:
        rows: one per epoch, as in ``metrics.csv``.
    """
    if not rows:
        return []
    losses: dict[str, Line] = {
        "train_loss": ("training", {"color": MUTED, "linestyle": "--"}),
        "val_loss": ("validation", {"color": INK, "linewidth": 2.0}),
    }
    top1 = {f"val_top1_{head}": line for head, line in _HEADS.items() if f"val_top1_{head}" in rows[-1]}
    rate = {"lr": _HEADS["fused"]}
    charts = [
        _curve(rows, losses, name="loss", title="Loss"),
        _curve(rows, top1, name="top1", title="Validation top-1", percent=True),
        _curve(rows, rate, name="lr", title="Learning rate"),
    ]
    return [chart for chart in charts if chart]


@rc_context(_STYLE)
def curves_of_two(a: Sequence[Row], b: Sequence[Row]) -> list[Chart]:
    """Draw validation loss and top-1 of two runs over each other, as far as the rows have them."""
    lines: dict[str, Line] = {"a": ("A", {"color": CONV}), "b": ("B", {"color": TRANS, "linestyle": "--"})}
    charts = []
    for column, title, percent in (
        ("val_loss", "Validation loss", False),
        ("val_top1_fused", "Validation top-1", True),
    ):
        rows = [
            {"epoch": row["epoch"], name: row[column]}
            for name, own in (("a", a), ("b", b))
            for row in own
            if column in row
        ]
        charts.append(_curve(rows, lines, name=column, title=title, percent=percent))
    return [chart for chart in charts if chart]


@rc_context(_STYLE)
def reliability_diagram(reliability: Reliability, *, name: str, title: str) -> Chart:
    """Draw the share of right predictions over their probability, and the number of predictions.

    Args:
        reliability: has the bins to draw.
        name: unique among the charts of a page.
        title: shown above the diagram.
    """
    figure = Figure(figsize=(4.0, 3.7))
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    filled = [b for b in reliability.bins if b.count]
    width = 0.86 * (reliability.bins[0].high - reliability.bins[0].low)
    middles = [(b.low + b.high) / 2 for b in filled]
    accuracies = [b.accuracy for b in filled]
    upper.bar(middles, accuracies, width, color=CONV, label="right predictions")
    upper.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="perfect")
    marker = {"marker": "o", "markersize": 4, "markerfacecolor": SURFACE, "markeredgecolor": INK}
    confidences = [b.confidence for b in filled]
    upper.plot(confidences, accuracies, linestyle="", label="at mean probability", **marker)
    total = sum(b.count for b in filled)
    lower.bar(middles, [b.count / total for b in filled], width, color=MUTED)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
    _legend(figure)
    lower.set(xlabel="probability of the prediction", ylabel="images", ylim=(0, None))
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(_PERCENT)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    gap = f"{title}: expected calibration error {reliability.ece:.1%} over {len(filled)} filled bins."
    return Chart(title, _svg(figure, name=name, label=f"Reliability diagram. {gap}"))


def _curve(
    rows: Sequence[Row],
    lines: Mapping[str, Line],
    *,
    name: str,
    title: str,
    percent: bool = False,
) -> Chart | None:
    """Draw columns, each with its legend and line, over the epochs; None without numbers."""
    figure = Figure(figsize=(4.0, 2.7))
    axes = figure.add_subplot()
    ends = []
    for column, (legend, line) in lines.items():
        points = [(row["epoch"], row.get(column, math.nan)) for row in rows]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if points:
            marker = "o" if len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), marker=marker, label=legend, **line)
            shown = f"{points[-1][1]:.1%}" if percent else f"{points[-1][1]:.4g}"
            ends.append(f"{legend if len(lines) > 1 else title} {shown} at the end")
    if not ends:
        return None
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        axes.yaxis.set_major_formatter(_PERCENT)
    if len(lines) > 1:
        _legend(figure)
    epochs = len({row["epoch"] for row in rows})
    label = f"{title} over {epochs} epochs: {', '.join(ends)}."
    return Chart(title, _svg(figure, name=name, label=label))


def _legend(figure: Figure) -> None:
    """Put the legend above the axes, where it covers nothing."""
    figure.legend(loc="outside upper left", ncols=3)


def _svg(figure: Figure, *, name: str, label: str) -> Markup:
    """Return the figure without a fixed size, with ids that are unique on the page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # no links to vocabularies
    with rc_context({"svg.hashsalt": name}):  # makes ids repeatable
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # would apply to the whole page
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    head, _, body = text.partition(">")
    (view,) = re.findall(r'viewBox="[^"]*"', head)  # without a width: the page decides the size
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" {view}'
    return Markup(f"{head}>{body}")  # numbers and our own words only; what comes from outside never gets here
