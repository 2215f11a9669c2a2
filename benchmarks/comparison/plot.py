"""Speed over multiply-adds, as an image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox, BboxBase

from conformer_vision.files import atomic_path

from .result import ComparisonResult, Row

_MARKERS = {
    "reference": "X",
    "eager": "o",
    "compiled": "s",
    "folded": "D",
    "folded-compiled": "P",
    "folded-reduce-overhead": "*",
    "folded-max-autotune": "h",
    "onnx": "^",
    "openvino": "v",
    "torch-export": "<",
    "torchscript": ">",
}
_COLOURS = {"fp32": "tab:blue", "bf16": "tab:orange", "fp16": "tab:green", "int8": "tab:red", None: "black"}
_PEER = "tab:gray"
_PLACES = (
    *(("center", 0, 6), ("left", 6, -2), ("right", -6, -2), ("center", 0, -11)),
    *(("center", 0, above) for above in (14, -19, 22, -27, 30, -35, 38)),
)
"""Where a name may stand: its alignment, and points right of and above the point that it names."""
_MARGIN = 1.5
"""Factor between the outermost points and the edges."""


def draw_plot(result: ComparisonResult, path: Path) -> None:
    """Draws images per second over multiply-adds per image to a PNG file, one panel per size of batch.

    Both axes are logarithmic, so that the machine's matrix products, and every share of them, are straight
    lines.

    Args:
        result: with at least one row whose multiply-adds are known; others are not drawn.
        path: file to write, in one step or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        draw_figure(result).savefig(temporary, format="png", dpi=130)


def draw_figure(result: ComparisonResult) -> Figure:
    """Draws the figure of `draw_plot`."""
    rows = [row for row in result.rows if row.macs]
    sizes = sorted({row.batch for row in rows}) or [0]
    figure = Figure(figsize=(5.2 * len(sizes) + 2.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, and leaves pyplot's state alone
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, size in zip(panels, sizes, strict=True):
        _draw_panel(axes, [row for row in rows if row.batch == size], result)
        axes.set_title(f"batch {size}")
    if rows:
        # The panels share the axis of speed, so that its range is that of all points.
        speeds = [row.images_per_second for row in rows]
        panels[0].set_ylim(min(speeds) / _MARGIN, max(*speeds, _height_of_ceilings(rows, result)) * _MARGIN)
    panels[0].set_ylabel("images per second")
    figure.legend(handles=_keys(rows), loc="outside right upper", frameon=False, fontsize=8)
    height, width = result.shape[1:]
    figure.suptitle(
        f"{result.machine.gpu or result.machine.processor}, {result.machine.threads} threads, "
        f"{height}×{width} pixels",
        fontsize=10,
    )
    for axes in panels:
        _separate(figure, axes)
    return figure


def _draw_panel(axes: Axes, rows: list[Row], result: ComparisonResult) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for row in rows:
        axes.plot(
            [(row.macs or 0) / 1e9],
            [row.images_per_second],
            marker=_MARKERS.get(_kind(row), "."),
            color=_colour(row),
            markersize=6,
            linestyle="none",
            alpha=0.85,
        )
    _name_models(axes, rows)
    if rows:
        costs = [(row.macs or 0) / 1e9 for row in rows]
        low, high = min(costs) / _MARGIN, max(costs) * _MARGIN
        for precision, ceiling in result.ceilings.items():
            ends = [ceiling / 1e9 / low, ceiling / 1e9 / high]
            axes.plot([low, high], ends, linestyle="--", linewidth=1, color=_COLOURS.get(precision, "black"))
        axes.set_xlim(low, high)
    axes.set_xlabel("multiply-adds per image in 1e9")
    axes.grid(which="both", alpha=0.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _height_of_ceilings(rows: list[Row], result: ComparisonResult) -> float:
    """The speed at which the highest ceiling lies in the middle of the range of costs."""
    costs = [row.macs for row in rows if row.macs]
    return max(result.ceilings.values(), default=0.0) / (min(costs) * max(costs)) ** 0.5


def _name_models(axes: Axes, rows: list[Row]) -> None:
    """Each model's name above its fastest point."""
    fastest: dict[str, Row] = {}
    for row in rows:
        if row.model not in fastest or row.images_per_second > fastest[row.model].images_per_second:
            fastest[row.model] = row
    for row in fastest.values():
        axes.annotate(
            Path(row.model).name,
            ((row.macs or 0) / 1e9, row.images_per_second),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=6,
            color=_PEER if row.peer else "black",
        )


def _separate(figure: Figure, axes: Axes) -> None:
    """Moves the names of a panel to where they lie over no point and no other name, where they can."""
    figure.draw_without_rendering()  # decides where the panel is
    taken: list[BboxBase] = []
    for line in axes.lines:
        if line.get_linestyle() == "None":
            x, y = axes.transData.transform(np.asarray(line.get_xydata()))[0]
            half = line.get_markersize() / 2 * figure.dpi / 72
            taken.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    for name in axes.texts:
        for alignment, right, above in _PLACES:
            name.set_horizontalalignment(alignment)  # type: ignore[arg-type]
            cast(Annotation, name).xyann = (right, above)
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)


def _keys(rows: Iterable[Row]) -> list[Line2D]:
    rows = list(rows)
    kinds = [kind for kind in _MARKERS if any(_kind(row) == kind for row in rows)]
    precisions = [name for name in _COLOURS if any(row.precision == name and not row.peer for row in rows)]
    keys = [
        Line2D([], [], marker=_MARKERS[kind], color="black", linestyle="none", label=kind) for kind in kinds
    ]
    keys += [
        Line2D([], [], color=_COLOURS[name], linewidth=3, label=name or "unknown precision")
        for name in precisions
    ]
    if any(row.peer for row in rows):
        keys.append(Line2D([], [], color=_PEER, linewidth=3, label="timm's models"))
    keys.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="matrix products"))
    return keys


def _kind(row: Row) -> str:
    return row.runtime.removesuffix(f"-{row.precision}")


def _colour(row: Row) -> str:
    return _PEER if row.peer else _COLOURS.get(row.precision, "black")
