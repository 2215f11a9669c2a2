"""Draw what the bundled weights say about two photos: each head's classes and their fusion.

Run `make figures`. Nothing in the figure is typed: images, classes and probabilities are computed here.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, wherever this runs

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from PIL import Image
from skimage import data

import conformer_vision
from conformer_vision.models import BranchLogits, Conformer

MODEL = "conformer_nano_patch8_64"
PHOTOS = {"chelsea.png": data.chelsea, "coffee.png": data.coffee}
"""Photos that scikit-image brings, of classes that the weights know."""
SHOWN = 4
COLOURS = {"convolution head": "#2b6cb0", "transformer head": "#6b46c1", "fused": "#1f2933"}


def main() -> None:
    """Write predictions.png beside this file."""
    loaded = conformer_vision.load(MODEL)
    model = loaded.model
    assert isinstance(model, Conformer)
    figure, rows = plt.subplots(
        len(PHOTOS), 1 + len(COLOURS), figsize=(11, 2.1 * len(PHOTOS)), layout="constrained"
    )
    for axes, (name, photo) in zip(rows, PHOTOS.items(), strict=True):
        image = Image.fromarray(photo())
        axes[0].imshow(image)
        axes[0].set_axis_off()
        axes[0].set_title(name, fontsize=9, color="#7b8794")
        with torch.inference_mode():
            branches: BranchLogits = model.forward_branches(loaded.transform(image)[None])
            heads = (branches.conv, branches.trans, model.fuse_logits(branches) / loaded.spec.temperature)
        for place, (head, colour), logits in zip(axes[1:], COLOURS.items(), heads, strict=True):
            draw_head(place, head, logits.softmax(1)[0], loaded.spec.labels, colour)
    figure.savefig(Path(__file__).with_name("predictions.png"), dpi=150)


def draw_head(
    axes: Axes, head: str, probabilities: torch.Tensor, labels: tuple[str, ...], colour: str
) -> None:
    """Draw a head's likeliest classes as bars; `probabilities` (K,)."""
    top = probabilities.topk(SHOWN)
    names = [labels[index] for index in top.indices.tolist()]
    bars = axes.barh(range(SHOWN), top.values.tolist(), color=colour, height=0.55)
    axes.bar_label(bars, labels=[f"{value:.0%}" for value in top.values.tolist()], fontsize=8, padding=3)
    axes.set_yticks(range(SHOWN), names, fontsize=9)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_title(head, fontsize=9, color=colour, loc="left")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
