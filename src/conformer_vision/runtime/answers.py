"""The answers for images, from what a model gives for a batch of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from conformer_vision.spec import ModelSpec

from .base import FUSED, Array, Outputs
from .decisions import head_probabilities, is_present
from .prediction_html import prediction_html, predictions_html
from .unsure import Judge


class Guess(NamedTuple):
    """A class and the probability that a head gives it."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The result for one image: classes by decreasing probability, or an error."""

    name: str
    """Path of the file, or the name of an image without one."""
    labels: tuple[str, ...]
    """The top-k classes, or more if the conformal set is larger; empty with an error. Of a model of several
    labels per image the classes that are present, perhaps none, unless ``top_k`` was given."""
    probabilities: tuple[float, ...]
    """Their probabilities at the model's temperature: among all classes, or of several labels per image each
    by itself."""
    error: str | None = None
    """Why there is no result, in one line."""
    conv: Guess | None = None
    """First choice of a Conformer's convolution head; None for other models."""
    trans: Guess | None = None
    """First choice of its transformer head."""
    unsure: str | None = None
    """Why the answer may be wrong, or the image show none of the classes; None for a sure answer, and for a
    model without thresholds."""
    conformal_set: tuple[str, ...] | None = None
    """The classes that hold the true one with the probability asked for; None if it was not asked for."""
    present: tuple[str, ...] | None = None
    """The classes whose probability reaches the model's threshold of the class, the most probable first; None
    for a model of one label per image, and with an error."""

    def _repr_html_(self) -> str:
        """Show the prediction in a notebook."""
        return prediction_html(self)


class Predictions(list[Prediction]):
    """A list of predictions, which shows itself in notebooks."""

    def _repr_html_(self) -> str:
        return predictions_html(self)


@dataclass(frozen=True)
class Answering:
    """How a model's outputs become answers."""

    spec: ModelSpec
    judge: Judge | None
    """Says what is unsure; None where that is not asked for, or the model has no thresholds."""
    sets: Callable[[Array], Array] | None
    """From probabilities (B, K) to the classes (B, K) in the conformal sets; None for no sets."""

    def __call__(self, names: Sequence[str], outputs: Outputs, *, top_k: int) -> Iterator[Prediction]:
        """Yield the answers to a batch; what can be is computed for all of its images at once.

        Args:
            names: Of the B images.
            outputs: Of the model.
            top_k: Number of classes per image; 0 for those that are present.
        """
        classes, several = self.spec.labels, self.spec.multilabel
        heads = head_probabilities(outputs.logits, self.spec)
        fused = heads[FUSED]
        finite = np.all([np.isfinite(values).all(axis=1) for values in heads.values()], axis=0).tolist()
        none: list[Any] = [None] * len(names)
        unsure = none if self.judge is None else self.judge(outputs)
        members = none if self.sets is None else self.sets(fused).tolist()
        present = is_present(fused, self.spec).tolist() if several else none
        # Of sets, and of what is present, the classes are named in their order, however many there are.
        ranked = np.argsort(-fused, axis=1, kind="stable")
        if not several and self.sets is None:
            ranked = ranked[:, :top_k]
        order, probabilities = ranked.tolist(), np.take_along_axis(fused, ranked, axis=1).tolist()
        branches = {head: self._guesses(values) for head, values in heads.items() if head != FUSED}
        for row, name in enumerate(names):
            if not finite[row]:
                problem = f"{name}: the model's output is not finite; train it again"
                yield Prediction(name, (), (), error=problem)
                continue
            own_set, shown = (
                None if chosen is None else tuple(classes[k] for k in order[row] if chosen[k])
                for chosen in (members[row], present[row])
            )
            places = list(range(max(top_k, len(own_set or ()))))
            if top_k == 0:  # what is present, which need not be the most probable: each has its own threshold
                places = [place for place, k in enumerate(order[row]) if present[row][k]]
            own = {head: guesses[row] for head, guesses in branches.items()}
            yield Prediction(
                name,
                tuple(classes[order[row][place]] for place in places),
                tuple(probabilities[row][place] for place in places),
                unsure=unsure[row],
                conformal_set=own_set,
                present=shown,
                conv=own.get("conv"),
                trans=own.get("trans"),
            )

    def _guesses(self, probabilities: Array) -> list[Guess]:
        """Return the first choices of a head with probabilities (B, K)."""
        pairs = zip(probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist(), strict=True)
        return [Guess(self.spec.labels[k], probability) for k, probability in pairs]
