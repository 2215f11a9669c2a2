"""A figure of the couplings: what both branches hold and exchange in every block, and the same when cut.

The paper's figures 1 and 4 show such maps of the two branches beside those of separate networks.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from conformer_vision.explain.coupling import BlockView, Couplings, couplings
from conformer_vision.explain.drawing import heat_image
from conformer_vision.explain.explainer import Explainer, Shown, relative
from conformer_vision.extras import require
from conformer_vision.files import atomic_path

_CELL = 0.85
"""Edge of one map, in inches."""
_COUPLED = {
    "map before": "map_before",
    "+ from tokens": "from_tokens",
    "map after": "map_after",
    "tokens before": "tokens_before",
    "+ from map": "from_map",
    "tokens after": "tokens_after",
    "attention": "attention",
}
_CUT = {"map after": "map_after", "tokens after": "tokens_after", "attention": "attention"}


def save_couplings(
    explainer: Explainer, shown: Shown, path: str | Path, *, cut: Collection[int] | None = None
) -> None:
    """Draw what every block of a Conformer holds and exchanges for an image, coupled and cut, as a PNG.

    Args:
        explainer: The model.
        shown: The image, from `Explainer.show`.
        path: The file to write.
        cut: Numbers of the blocks whose couplings are cut in the lower part; all by default.

    Raises:
        UserError: A model without couplings, a block without them, or a file that cannot be written.
    """
    coupled = couplings(explainer.model, shown.batch)
    cut = range(2, len(coupled.blocks) + 1) if cut is None else cut
    apart = couplings(explainer.model, shown.batch, cut=cut)
    depth, rows = len(coupled.blocks), len(_COUPLED) + len(_CUT)
    figure_type = require("matplotlib.figure").Figure
    figure = figure_type(figsize=(1.3 + _CELL * depth, 0.9 + (_CELL + 0.04) * rows), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[len(_COUPLED), len(_CUT)])
    _draw(upper, coupled, _COUPLED, f"{Path(shown.name).name}. Coupled: {_answers(explainer, coupled)}")
    what = (
        "all couplings" if len(cut) == depth - 1 else f"couplings of block {', '.join(map(str, sorted(cut)))}"
    )
    _draw(lower, apart, _CUT, f"Without {what}: {_answers(explainer, apart)}")
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; do not fill the terminal with warnings.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=110)


def _answers(explainer: Explainer, found: Couplings) -> str:
    texts = []
    for head, logits in found.logits._asdict().items():
        best = logits[0].softmax(0).max(0)
        texts.append(f"{head} {explainer.spec.labels[int(best.indices)]} {best.values.item():.1%}")
    return ", ".join(texts)


def _draw(part: object, found: Couplings, rows: dict[str, str], title: str) -> None:
    """Draw one row per quantity and one column per block."""
    panel: object = part
    heading = panel.suptitle(title, fontsize=10, ha="left", x=0.01)  # type: ignore[attr-defined]
    heading.set_parse_math(False)  # a "$" in a name is a dollar
    axes = panel.subplots(len(rows), len(found.blocks), squeeze=False)  # type: ignore[attr-defined]
    for row, (label, name) in enumerate(rows.items()):
        for column, view in enumerate(found.blocks):
            axis = axes[row][column]
            axis.set_xticks([])
            axis.set_yticks([])
            if (values := _values(view, name)) is None:
                axis.set_axis_off()
            else:
                axis.imshow(
                    heat_image(relative(values[0], signed=False).cpu().numpy()), interpolation="bilinear"
                )
            if row == 0:
                axis.set_title(str(view.block), fontsize=9)
        first = axes[row][0]
        first.set_axis_on()
        first.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
        if _values(found.blocks[0], name) is None:
            first.spines[:].set_visible(False)


def _values(view: BlockView, name: str) -> Tensor | None:
    values: Tensor | None = getattr(view, name)
    return values
