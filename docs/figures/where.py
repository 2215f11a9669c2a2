"""Draw what the bundled weights say about two photos and where each branch sees it; and the couplings of one.

Run `make figures`. Nothing in the figures is typed: images, classes and heat maps are computed here.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, wherever this runs

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from skimage import data

from conformer_vision.explain import Explainer, HeatMapOptions, explained
from conformer_vision.explain.explainer import Shown
from conformer_vision.explain.figure import save_couplings

FOLDER = Path(__file__).parent
PHOTOS = {"chelsea.png": data.chelsea, "coffee.png": data.coffee}
"""Photos that scikit-image brings, of classes that the weights know."""
VIEWS = {"conv": ("convolution head", "cam"), "trans": ("transformer head", "gradient-rollout")}
SHOWN = 4
COLOURS = 64
"""Of the figure of the couplings, which is only coarse maps."""


def main() -> None:
    """Write where.jpg and couplings.png beside this file."""
    explainer = Explainer(device="cpu")
    figure, rows = plt.subplots(len(PHOTOS), 4, figsize=(11, 2.1 * len(PHOTOS)), layout="constrained")
    for axes, (name, photo) in zip(rows, PHOTOS.items(), strict=True):
        (shown,) = explainer.show(Image.fromarray(photo()))
        assert shown.image is not None
        show(axes[0], shown.image, name, "#7b8794")
        best = shown.best(1)
        for place, (head, (title, method)) in zip(axes[1:], VIEWS.items(), strict=False):
            explanation = explainer.explanation(shown, best, HeatMapOptions(method))
            answer = explanation.classes[0]
            show(
                place,
                explained(explanation),
                f"{title}: {answer.label} {answer.probabilities[head]:.0%}",
                "#1f2933",
            )
        draw_fused(axes[3], explainer, shown)
    figure.savefig(FOLDER / "where.jpg", dpi=130, pil_kwargs={"quality": 88})
    draw_couplings(explainer, Image.fromarray(data.chelsea()))


def show(axes: Axes, image: Image.Image, title: str, colour: str) -> None:
    """Show an image with a title."""
    axes.imshow(image)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, color=colour)


def draw_fused(axes: Axes, explainer: Explainer, shown: Shown) -> None:
    """Draw the likeliest classes of the prediction as bars."""
    answers = [explainer.answer(number, shown) for number in shown.best(SHOWN)]
    shares = [answer.probabilities["fused"] for answer in answers]
    bars = axes.barh(range(SHOWN), shares, color="#12703a", height=0.55)
    axes.bar_label(bars, labels=[f"{share:.0%}" for share in shares], fontsize=8, padding=3)
    axes.set_yticks(range(SHOWN), [answer.label for answer in answers], fontsize=9)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_title("fused", fontsize=9, color="#12703a", loc="left")
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def draw_couplings(explainer: Explainer, photo: Image.Image) -> None:
    """Draw what both branches exchange, in few colours so that the file stays small."""
    photo.filename = "chelsea.png"  # type: ignore[attr-defined]
    (shown,) = explainer.show(photo)
    save_couplings(explainer, shown, FOLDER / "couplings.png")
    with Image.open(FOLDER / "couplings.png") as drawn:
        small = drawn.convert("RGB").quantize(COLOURS)
    small.save(FOLDER / "couplings.png", optimize=True)


if __name__ == "__main__":
    main()
