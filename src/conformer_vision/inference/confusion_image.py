"""The confusion matrix as an image, readable for any number of classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from conformer_vision.files import atomic_path
from conformer_vision.inference.confusion import Confusion, shown_classes

MAX_SHOWN = 40  # with more, class names would be too small to read
MAX_COUNTED = 20  # with more, counts would be too small
MAX_NAME_LENGTH = 24


def save_confusion_matrix(confusion: Confusion, classes: Sequence[str], path: str | Path) -> None:
    """Draw the counts of (true class, predicted class) and write a PNG file, atomically.

    Colours show shares of the true class; rows without images are grey. Up to 20 classes have their counts
    written. Of more than 40 classes the most confused ones are shown.

    Args:
        confusion: The counts, as in `Evaluation`.
        classes: The names of all classes.
        path: The file to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = draw_confusion_matrix(confusion, classes)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; do not fill the terminal with warnings.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)


def draw_confusion_matrix(confusion: Confusion, classes: Sequence[str]) -> Figure:
    """Draw the figure of `save_confusion_matrix` with matplotlib's objects, without pyplot's state."""
    shown = shown_classes(confusion, classes, most=MAX_SHOWN)
    rows = [confusion.get(name, {}) for name in shown]
    counts = np.array([[row.get(name, 0) for name in shown] for row in rows])
    totals = np.array([[sum(row.values())] for row in rows])
    shares = np.ma.masked_array(
        counts / np.maximum(totals, 1), mask=np.broadcast_to(totals == 0, counts.shape)
    )
    side = max(2.6, (0.46 if len(shown) <= MAX_COUNTED else 0.24) * len(shown))
    names = [_shortened(name) for name in shown]
    margin = 0.6 + 0.085 * max(map(len, names))
    figure = Figure(figsize=(side + margin + 1.3, side + margin + 0.5), layout="constrained")
    axes = figure.add_subplot()
    # The square root makes single confusions visible next to a strong diagonal.
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(
        shares, cmap=colormaps["Blues"].with_extremes(bad="0.88"), norm=norm, interpolation="nearest"
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "25 %", "50 %", "100 %"])
    bar.set_label("share of the true class")
    _name_axes(axes, names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(shown) <= MAX_COUNTED:
        _write_counts(axes, counts, norm(shares).filled(0))
    images = sum(sum(row.values()) for row in confusion.values())
    right = sum(row.get(name, 0) for name, row in confusion.items())
    title = f"{right:,} of {images:,} images right"
    if len(shown) < len(classes):
        title += f"; the {len(shown)} most confused of {len(classes):,} classes"
    axes.set_title(title, fontsize=11)
    return figure


def _shortened(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


def _name_axes(axes: Axes, names: Sequence[str]) -> None:
    size = 9 if len(names) <= MAX_COUNTED else 8
    short = max(map(len, names)) <= 3
    places = range(len(names))
    axes.set_xticks(places, names, fontsize=size, rotation=0 if short else 90)
    axes.set_yticks(places, names, fontsize=size)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a "$" in a name is a dollar


def _write_counts(axes: Axes, counts: npt.NDArray[np.int64], darkness: npt.NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            text = str(count)
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=9 if len(text) <= 4 else 36 / len(text),
                color="white" if darkness[row, column] > 0.6 else "0.15",
            )
