"""How charts look, and the curves of a run: the same in PNG files and on pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from conformer_vision.files import atomic_path
from conformer_vision.pages.palette import LIGHT

Row = Mapping[str, float]
Colours = Mapping[str, str]
"""Those of `palette.PALETTE` by name, as matplotlib takes them."""

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
_WIDE = 2.0


@dataclass(frozen=True)
class Line:
    """A column of ``metrics.csv`` as a line."""

    legend: str
    colour: str
    """A name of the palette."""
    dashed: bool = False
    wide: bool = False
    interval: bool = False
    """Whether the columns ``…_low`` and ``…_high`` are drawn as a band."""


@dataclass(frozen=True)
class Panel:
    """One chart of a run's curves."""

    name: str
    title: str
    lines: dict[str, Line] = field(default_factory=dict)
    """By column."""
    percent: bool = False


HEADS = {
    "fused": Line("fused", "fused", wide=True, interval=True),
    "conv": Line("convolution", "conv"),
    "trans": Line("transformer", "trans", dashed=True),
}
LOSS = Panel(
    "loss",
    "Loss",
    {
        "train_loss": Line("training", "muted", dashed=True),
        "val_loss": Line("validation", "ink", wide=True),
    },
)
TOP1 = Panel("top1", "Validation top-1", {f"val_top1_{head}": line for head, line in HEADS.items()}, True)
MAP = Panel("map", "Validation mAP", {f"val_map_{head}": line for head, line in HEADS.items()}, True)
"""In place of top-1, where an image has several labels."""
RATE = Panel("lr", "Learning rate", {"lr": Line("", "ink", wide=True)})
PANELS = (LOSS, TOP1, MAP, RATE)


def style(colours: Colours) -> Any:
    """Return matplotlib's settings for charts, as `rc_context` takes them."""
    line, muted = colours["line"], colours["muted"]
    ticks = {"color": muted, "labelsize": 8, "major.size": 0}
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": line,
        "axes.facecolor": "none",
        "axes.grid": True,
        "axes.labelcolor": muted,
        "axes.labelsize": 8,
        "axes.titlecolor": colours["ink"],
        "axes.titlesize": 10,
        **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
        "figure.constrained_layout.use": True,
        "grid.color": line,
        "grid.linewidth": 0.7,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "legend.labelcolor": colours["ink"],
        "lines.linewidth": 1.5,
        **{f"{axis}tick.{name}": value for axis in "xy" for name, value in ticks.items()},
    }


def plot_panel(axes: Axes, panel: Panel, rows: Sequence[Row], colours: Colours) -> dict[str, float]:
    """Draw the columns of a panel that have numbers over the epochs; return each one's last number."""
    ends = {}
    for column, line in panel.lines.items():
        points = [(row["epoch"], row.get(column, math.nan)) for row in rows]
        points = [(epoch, value) for epoch, value in points if math.isfinite(value)]
        if not points:
            continue
        ends[column] = points[-1][1]
        if line.interval:
            _band(axes, rows, column, colours[line.colour])
        axes.plot(
            *zip(*points, strict=True),
            color=colours[line.colour],
            label=line.legend or None,
            linestyle="--" if line.dashed else "-",
            linewidth=_WIDE if line.wide else None,
            marker="o" if len(points) == 1 else "",
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.percent:
        axes.yaxis.set_major_formatter(PERCENT)
    return ends


def _band(axes: Axes, rows: Sequence[Row], column: str, colour: str) -> None:
    bounds = [
        (row["epoch"], row.get(f"{column}_low", math.nan), row.get(f"{column}_high", math.nan))
        for row in rows
    ]
    bounds = [each for each in bounds if all(map(math.isfinite, each))]
    if bounds:
        epochs, low, high = zip(*bounds, strict=True)
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw losses, top-1 or mAP of every head and the learning rate over the epochs.

    Args:
        rows: one per epoch, as in `metrics.csv`; at least one.
        path: PNG file to write, in one step or not at all.
    """
    panels = [panel for panel in PANELS if any(column in rows[-1] for column in panel.lines)]
    with rc_context(style(LIGHT)):
        figure = Figure(figsize=(12, 3.6))
        FigureCanvasAgg(figure)  # draws without a display, and leaves pyplot's state alone
        for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
            plot_panel(axes, panel, rows, LIGHT)
            axes.set_title(panel.title)
            if any(line.legend for line in panel.lines.values()):
                axes.legend()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=110)
