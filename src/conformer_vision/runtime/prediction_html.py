"""Predictions in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from conformer_vision import notebook
from conformer_vision.notebook import Bar

_HEADS = {"conv": "Convolution branch", "trans": "Transformer branch"}
_MOST = 100
"""Predictions that are shown of many."""


class Shown(Protocol):
    """What is shown of a `Prediction`."""

    @property
    def name(self) -> str: ...  # noqa: D102 - as in `Prediction`, and so are the others
    @property
    def labels(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def probabilities(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def error(self) -> str | None: ...  # noqa: D102
    @property
    def conv(self) -> tuple[str, float] | None: ...  # noqa: D102
    @property
    def trans(self) -> tuple[str, float] | None: ...  # noqa: D102
    @property
    def unsure(self) -> str | None: ...  # noqa: D102
    @property
    def conformal_set(self) -> tuple[str, ...] | None: ...  # noqa: D102
    @property
    def present(self) -> tuple[str, ...] | None: ...  # noqa: D102


def predictions_html(predictions: Sequence[Shown]) -> str:
    """Return the HTML that shows predictions below each other."""
    parts = [prediction_html(each) for each in islice(predictions, _MOST)]
    if (more := len(predictions) - len(parts)) > 0:
        parts.append(notebook.line(f"and {more:,} more", muted=True))
    return "".join(parts) or notebook.line("no images", muted=True)


def prediction_html(prediction: Shown) -> str:
    """Return the HTML that shows a prediction."""
    parts = [notebook.title(prediction.name)]
    if prediction.error is not None:
        return notebook.block(*parts, notebook.warning(f"no answer: {prediction.error}"))
    if prediction.unsure is not None:
        parts.append(notebook.warning(f"unsure: {prediction.unsure}"))
    if not prediction.labels:
        parts.append(notebook.line("no class"))
    parts.append(notebook.bars(map(Bar, prediction.labels, prediction.probabilities)))
    guesses = {"conv": prediction.conv, "trans": prediction.trans}
    rows = [Bar(f"{_HEADS[head]}: {guess[0]}", guess[1], head) for head, guess in guesses.items() if guess]
    if rows:
        parts.append(notebook.bars(rows))
    if prediction.conformal_set is not None:
        parts.append(notebook.line(f"set of classes: {', '.join(prediction.conformal_set) or 'none'}"))
    if prediction.present:
        parts.append(notebook.line(f"present: {', '.join(prediction.present)}"))
    return notebook.block(*parts)
