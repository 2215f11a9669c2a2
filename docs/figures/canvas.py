"""A canvas for the figures of networks: boxes, arrows and labels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image

INK, FAINT = "#1f2933", "#7b8794"
STAGES = ("#e3f0fb", "#c9e1f6", "#a9cdee")
CNN_EDGE, TOKENS, TOKENS_EDGE = "#2b6cb0", "#efe7fb", "#6b46c1"
DOWN, UP = "#0f766e", "#c05621"
PLAIN = "#f5f7fa"


class Canvas:
    """Boxes, arrows and labels on axes measured in inches, y growing downwards."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = plt.figure(figsize=(width, height), facecolor="white")
        self.ax: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.ax.set_xlim(0, width)
        self.ax.set_ylim(height, 0)
        self.ax.axis("off")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        left: str,
        right: str = "",
        fill: str = PLAIN,
        edge: str = FAINT,
        size: float = 8.2,
    ) -> None:
        """Draw a rounded box: `left` and, bold, its shape `right`; or `left` alone, centred."""
        self.ax.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.06",
                fc=fill,
                ec=edge,
                lw=1.0,
                zorder=3,
            )
        )
        middle = y + height / 2
        if right:
            self.text(x + 0.1, middle, left, size=size, ha="left")
            self.text(x + width - 0.1, middle, right, size=size, ha="right", weight="bold")
        else:
            self.text(x + width / 2, middle, left, size=size)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 8.2,
        ha: str = "center",
        va: str = "center_baseline",
        color: str = INK,
        weight: str = "normal",
        background: str | None = None,
    ) -> None:
        """Write `text` at a point, on a plate of colour `background` where lines run below it."""
        y -= 0.018 if va == "center_baseline" else 0  # matplotlib centres a line with room for descenders
        plate = {"fc": background, "ec": "none", "pad": 0.8} if background else None
        self.ax.text(
            x,
            y,
            text,
            fontsize=size,
            ha=ha,
            va=va,
            color=color,
            weight=weight,
            bbox=plate,
            zorder=5,
            linespacing=1.25,
        )

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        color: str = INK,
        bend: str | None = None,
    ) -> None:
        """Draw an arrow, straight or with the matplotlib connection style `bend`."""
        self.ax.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                lw=1.2,
                color=color,
                shrinkA=0,
                shrinkB=0,
                connectionstyle=bend or "arc3",
                zorder=4,
            )
        )

    def plus(self, x: float, y: float, *, color: str = INK) -> None:
        """Draw the circled plus of an addition."""
        self.ax.add_patch(Circle((x, y), 0.085, fc="white", ec=color, lw=1.1, zorder=5))
        for dx, dy in ((0.05, 0), (0, 0.05)):
            self.ax.plot([x - dx, x + dx], [y - dy, y + dy], color=color, lw=1.1, zorder=6)

    def save(self, path: Path) -> None:
        """Write the figure, 1660 pixels wide: twice the width of a README's column."""
        buffer = BytesIO()
        self.figure.savefig(buffer, dpi=200)
        plt.close(self.figure)
        Image.open(buffer).convert("RGB").quantize(128).save(path, optimize=True)  # a third of the size
