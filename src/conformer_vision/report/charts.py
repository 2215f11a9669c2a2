"""Charts as inline SVG with the colours of the page, so that they follow light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from conformer_vision.inference.calibration import Reliability
from conformer_vision.inference.selective import Array, plot_risk_coverage
from conformer_vision.pages.palette import PALETTE
from conformer_vision.plotting import PANELS, PERCENT, Line, Panel, Row, plot_panel, style

# Placeholder colours for matplotlib, and the variables of the style sheet that replace them.
_COLOURS = {name: f"#0{number:x}0{number:x}0{number:x}" for number, name in enumerate(PALETTE, 1)}
_STYLE: Any = style(_COLOURS) | {
    "figure.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: in the page's font, and readable to a screen reader
}


class Chart(NamedTuple):
    """A drawing and its title."""

    title: str
    svg: Markup


def curves(rows: Sequence[Row]) -> dict[str, Chart]:
    """Draw loss, top-1 of every head and learning rate over the epochs, as far as the rows have them.

    Args:
        rows: one per epoch, as in ``metrics.csv``.
    """
    return _drawn((panel, rows) for panel in PANELS)


def curves_of_two(a: Sequence[Row], b: Sequence[Row]) -> dict[str, Chart]:
    """Draw validation loss and top-1 of two runs over each other, as far as the rows have them."""
    lines = {"a": Line("A", "conv"), "b": Line("B", "trans", dashed=True)}
    return _drawn(
        (
            Panel(column, title, lines, percent=percent),
            [
                {"epoch": row["epoch"], name: row[column]}
                for name, own in (("a", a), ("b", b))
                for row in own
                if column in row
            ],
        )
        for column, title, percent in (
            ("val_loss", "Validation loss", False),
            ("val_top1_fused", "Validation top-1", True),
        )
    )


def _drawn(panels: Iterable[tuple[Panel, Sequence[Row]]]) -> dict[str, Chart]:
    """Draw panels that have numbers, by their names."""
    charts = {panel.name: _curve(panel, rows) for panel, rows in panels}
    return {name: chart for name, chart in charts.items() if chart}


@rc_context(_STYLE)
def risk_coverage_chart(risks: Array, answered: float | None) -> Chart:
    """Draw the share of errors among the surest answers; see `plot_risk_coverage`."""
    figure = Figure(figsize=(4.0, 3.7))
    plot_risk_coverage(figure.add_subplot(), risks, answered, _COLOURS)
    label = f"Risk-coverage curve: {risks[-1]:.1%} errors among all answers"
    if answered is not None and (sure := round(answered * len(risks))):
        label += f", {risks[sure - 1]:.1%} among the {answered:.1%} that are sure"
    return Chart("Errors among the surest answers", _svg(figure, name="risk", label=f"{label}."))


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
    upper.bar(middles, accuracies, width, color=_COLOURS["fused"], label="right predictions")
    upper.plot([0, 1], [0, 1], color=_COLOURS["muted"], linestyle="--", linewidth=1, label="perfect")
    marker = {"marker": "o", "markersize": 4}
    colours = {"markerfacecolor": _COLOURS["surface"], "markeredgecolor": _COLOURS["ink"]}
    confidences = [b.confidence for b in filled]
    upper.plot(confidences, accuracies, linestyle="", label="at mean probability", **marker, **colours)
    total = sum(b.count for b in filled)
    lower.bar(middles, [b.count / total for b in filled], width, color=_COLOURS["muted"])
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="right")
    _legend(figure)
    lower.set(xlabel="probability of the prediction", ylabel="images", ylim=(0, None))
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(PERCENT)
    lower.yaxis.set_major_locator(MaxNLocator(2))
    gap = f"{title}: expected calibration error {reliability.ece:.1%} over {len(filled)} filled bins."
    return Chart(title, _svg(figure, name=name, label=f"Reliability diagram. {gap}"))


@rc_context(_STYLE)
def _curve(panel: Panel, rows: Sequence[Row]) -> Chart | None:
    """Draw a panel; None without numbers."""
    figure = Figure(figsize=(4.0, 2.1))
    ends = plot_panel(figure.add_subplot(), panel, rows, _COLOURS)
    if not ends:
        return None
    if len(panel.lines) > 1:
        _legend(figure)
    words = [
        f"{panel.lines[column].legend or panel.title} {end:{'.1%' if panel.percent else '.4g'}} at the end"
        for column, end in ends.items()
    ]
    epochs = len({row["epoch"] for row in rows})
    label = f"{panel.title} over {epochs} epochs: {', '.join(words)}."
    return Chart(panel.title, _svg(figure, name=panel.name, label=label))


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
    for variable, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    head, _, body = text.partition(">")
    (view,) = re.findall(r'viewBox="[^"]*"', head)  # without a width: the page decides the size
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" {view}'
    return Markup(f"{head}>{body}")  # numbers and our own words only; what comes from outside never gets here
