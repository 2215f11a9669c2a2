"""The curves of a run as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import atomic_path
from .callbacks import by_head


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw losses, top-1 of every head and the learning rate over the epochs.

    Args:
        rows: one per epoch, as in `metrics.csv`; at least one.
        path: PNG file to write, in one step or not at all.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, and leaves pyplot's state alone
    loss, accuracy, rate = figure.subplots(1, 3)
    heads = {f"val_top1_{head}": head for head in by_head(rows[-1], "top1")}
    _plot(loss, rows, {"train_loss": "training", "val_loss": "validation"}, title="loss")
    _plot(accuracy, rows, heads, title="validation top-1")
    _plot(rate, rows, {"lr": ""}, title="learning rate")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _plot(axes: Axes, rows: Sequence[dict[str, float]], names: dict[str, str], *, title: str) -> None:
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else ""
    for name, label in names.items():
        axes.plot(epochs, [row[name] for row in rows], label=label or None, marker=marker)
    axes.set_title(title)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if any(names.values()):
        axes.legend()
