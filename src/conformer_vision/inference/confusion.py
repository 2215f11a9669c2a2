"""The confusion matrix as an image, readable from 2 to several hundred classes."""

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

MAX_NAMED = 40  # with more, class names would be too small to read; the axes show class numbers
MAX_COUNTED = 20  # with more, counts would be too small
MAX_NAME_LENGTH = 24


def save_confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str], path: str | Path) -> None:
    """Draw the counts of (true class, predicted class) and write a PNG file, atomically.

    Colours show shares of the true class; rows without images are grey. With up to 20 classes the counts are
    shown, with up to 40 the class names.

    Args:
        counts: K rows of K counts; row: true class, column: predicted class.
        classes: The K names.
        path: The file to write.

    Raises:
        UserError: The file cannot be written.
    """
    figure = draw_confusion_matrix(np.asarray(counts, dtype=np.int64), classes)
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; do not fill the terminal with warnings.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)


def draw_confusion_matrix(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw the figure of `save_confusion_matrix` with matplotlib's objects, without pyplot's state."""
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.ma.masked_array(
        counts / np.maximum(totals, 1), mask=np.broadcast_to(totals == 0, counts.shape)
    )
    side = _side_in_inches(len(classes))
    named = len(classes) <= MAX_NAMED
    names = [_shortened(name) for name in classes]
    margin = 0.6 + (0.085 * max(map(len, names)) if named else 0.3)
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
    if named:
        _name_axes(axes, names)
    axes.set_xlabel("predicted" if named else "predicted (class number, from 0)")
    axes.set_ylabel("true" if named else "true (class number, from 0)")
    if len(classes) <= MAX_COUNTED:
        _write_counts(axes, counts, norm(shares).filled(0))
    samples = int(counts.sum())
    accuracy = 100 * float(np.trace(counts)) / max(samples, 1)
    axes.set_title(f"top-1 {accuracy:.1f} % of {samples:,} images", fontsize=11)
    return figure


def _side_in_inches(classes: int) -> float:
    """Return the edge of the square: room for each count or name, with more classes 4 pixels each."""
    if classes <= MAX_COUNTED:
        return max(2.6, 0.46 * classes)
    if classes <= MAX_NAMED:
        return 0.24 * classes
    return min(max(9.0, 0.04 * classes), 30.0)


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
