"""The answers of a model to labelled images, as far as figures and reports need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Generic, NamedTuple

import numpy as np
import torch
from torch import Tensor

from conformer_vision.data import ImageSource, ImageStream, Label
from conformer_vision.inference.heads import Array, H, HeadAnswers, Kind, MultilabelHead
from conformer_vision.runtime.base import FUSED

MOST_KEPT = 200_000_000
"""Logits that are kept, of all heads: 800 MB, those of 66,000 images of 1,000 classes for three heads."""


class Broken(NamedTuple):
    """An image that could not be read."""

    name: str
    label: Label | None
    """Its true class, or classes; None in a stream."""
    group: str | None
    """Its group, where there are groups."""
    line: str
    """Its name and the reason."""


@dataclass(frozen=True)
class AnswersOf(Generic[H]):
    """The answers of every head to N images, without the broken ones, on the CPU."""

    heads: dict[str, H]
    """``conv``, ``trans`` and ``fused``, or ``fused`` alone for a network with one head."""
    labels: Array
    """(N,) int64, true classes; (N, K) bool where an image has any number of them."""
    indices: Array
    """(N,) int64, numbers of the images in their source; -1 for a stream."""
    order: Array
    """(N,) int64, numbers of the images in the pass from 0, counting broken ones."""
    kept: Array
    """(M,) int64, rows of the images whose logits are kept: all, or as many as memory is to hold."""
    names: list[str]
    """The name of each image."""
    groups: list[str] | None
    """The group of each image, such as its patient, where the source has groups."""
    broken: list[Broken]

    @property
    def whole(self) -> bool:
        """Whether the logits of all images are kept."""
        return len(self.kept) == len(self.labels)


Answers = AnswersOf[HeadAnswers]
"""Of a model of one label per image."""
MultilabelAnswers = AnswersOf[MultilabelHead]
"""Of a model of any number of labels per image."""


class Collector(Generic[H]):
    """Collects answers batch by batch; of the logits all, or those of an evenly drawn part of the images.

    Args:
        images: Number of images; None for a stream of unknown length, of which the first ones are kept.
        kind: How they are summed up.
        classes: K.
        temperature: Of the fused head; the others' is 1.
        keep_all: Keep the logits of all images, whatever memory that takes.
    """

    def __init__(
        self,
        images: int | None,
        *,
        kind: Kind[H],
        classes: int,
        temperature: float,
        keep_all: bool = False,
    ) -> None:
        self._kind = kind
        self._images = images
        self._classes = classes
        self._temperature = temperature
        self._keep_all = keep_all
        self._parts: dict[str, list[dict[str, Tensor]]] = {}
        self._numbers: list[tuple[Tensor, ...]] = []
        self._kept: list[Tensor] = []
        self._seen = 0

    @property
    def seen(self) -> int:
        """Number of images so far, without broken ones."""
        return self._seen

    def add(self, logits: dict[str, Tensor], labels: Tensor, indices: Tensor, order: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Head -> (B, K) float32, all finite.
            labels: (B,) int64, or (B, K) of 0 and 1.
            indices: (B,) as in `Answers`.
            order: (B,) as in `Answers`.

        Raises:
            UserError: As `Kind.truth`.
        """
        truth = self._kind.truth(labels, self._classes)
        places = torch.arange(self._seen, self._seen + len(labels))
        self._seen += len(labels)
        most = max(MOST_KEPT // (self._classes * len(logits)), 1)
        every = max(math.ceil((self._images or 0) / most), 1)
        kept = ((places % every == 0) & (places < most * every)) | self._keep_all
        for head, values in logits.items():
            part = self._kind.columns(values, truth, self._temperature_of(head))
            self._parts.setdefault(head, []).append(part | {"logits": values.cpu()[kept]})
        self._numbers.append((truth.cpu(), indices, order))
        self._kept.append(places[kept])

    def finish(
        self, source: ImageSource | ImageStream, *, broken: list[tuple[int, int, str]]
    ) -> AnswersOf[H]:
        """Join the batches; there must be one.

        Args:
            source: Of the images; it names them, and may group them.
            broken: Index, order and line of each image that could not be read.
        """
        heads = {}
        for head in list(self._parts):
            parts = self._parts.pop(head)
            columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            logits = columns.pop("logits")
            found = {name: column.numpy() for name, column in columns.items()}
            heads[head] = self._kind.head(found, logits, self._temperature_of(head))
        labels, indices, order = (torch.cat(column).numpy() for column in zip(*self._numbers, strict=True))
        groups = source.groups if isinstance(source, ImageSource) else None
        return AnswersOf(
            heads,
            labels,
            indices,
            order,
            torch.cat(self._kept).numpy(),
            names=[
                name_of(source, *numbers) for numbers in zip(indices.tolist(), order.tolist(), strict=True)
            ],
            groups=None if groups is None else [groups[index] for index in indices.tolist()],
            broken=[
                Broken(
                    name_of(source, index, number),
                    source.labels[index] if isinstance(source, ImageSource) else None,
                    None if groups is None else groups[index],
                    line,
                )
                for index, number, line in broken
            ],
        )

    def _temperature_of(self, head: str) -> float:
        return self._temperature if head == FUSED else 1.0


def name_of(source: ImageSource | ImageStream, index: int, order: int) -> str:
    """Return the name of an image: of a stream its number in the pass, from 1."""
    return source.name(index) if isinstance(source, ImageSource) else f"image {order + 1} of the stream"


def at_temperature(answers: AnswersOf[H], temperature: float, kind: Kind[H]) -> AnswersOf[H]:
    """Return the answers with the prediction at another temperature; the logits of all must be kept."""
    logits, truth = answers.heads[FUSED].logits, torch.from_numpy(answers.labels)
    columns = {name: each.numpy() for name, each in kind.columns(logits, truth, temperature).items()}
    return replace(answers, heads=answers.heads | {FUSED: kind.head(columns, logits, temperature)})


def join(parts: Sequence[AnswersOf[H]]) -> AnswersOf[H]:
    """Join the answers of models of the same classes to different images, such as those of folds."""
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    heads = {}
    for name, head in parts[0].heads.items():
        own = [part.heads[name] for part in parts]
        columns = {
            each.name: np.concatenate([getattr(one, each.name) for one in own])
            for each in fields(head)
            if each.name not in ("logits", "temperature")
        }
        # Logits that are at temperature 1 give the probabilities that each part had.
        logits = torch.cat([each.logits / each.temperature for each in own])
        heads[name] = replace(head, logits=logits, temperature=1.0, **columns)
    groups = None
    if all(part.groups is not None for part in parts):
        groups = [group for part in parts for group in part.groups or ()]
    return AnswersOf(
        heads,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.kept + start for part, start in zip(parts, starts, strict=False)]),
        names=[name for part in parts for name in part.names],
        groups=groups,
        broken=[broken for part in parts for broken in part.broken],
    )
