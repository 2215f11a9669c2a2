"""The answers of a model to labelled images, as far as figures and reports need them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from conformer_vision.data import ImageSource, ImageStream, Label
from conformer_vision.inference.runtimes import FUSED

MOST_KEPT = 200_000_000
"""Logits that are kept, of all heads: 800 MB, those of 66,000 images of 1,000 classes for three heads."""

Array = npt.NDArray[Any]


class Broken(NamedTuple):
    """An image that could not be read."""

    name: str
    label: Label | None
    """Its true class, or classes; None in a stream."""
    group: str | None
    """Its group, where there are groups."""
    line: str
    """Its name and the reason."""


COLUMNS = ("predicted", "rank", "confidence", "log_likelihood", "squares")
"""Of `HeadAnswers`: what most figures need of an image."""


@dataclass(frozen=True)
class HeadAnswers:
    """The answers of one head to N images, with probabilities at the head's temperature."""

    predicted: Array
    """(N,) int64, the class with the highest logit."""
    rank: Array
    """(N,) int64, how many classes come before the true one."""
    confidence: Array
    """(N,) float32, probability of the predicted class."""
    log_likelihood: Array
    """(N,) float32, logarithm of the probability of the true class, in nats."""
    squares: Array
    """(N,) float32, sum of the squared probabilities of all classes."""
    logits: Tensor
    """(M, K) float32, of the images that are kept, before the temperature."""
    temperature: float

    def probabilities(self) -> Array:
        """Compute the probabilities (M, K) float32 of the images that are kept."""
        probabilities: Array = (self.logits / self.temperature).softmax(dim=1).numpy()
        return probabilities

    def scores(self, number: int) -> Array:
        """Compute the logarithms (M,) of the probabilities of a class, in float64.

        In float32 many probabilities of a good model are 1, and could not be ordered.
        """
        scores: Array = (self.logits[:, number].double() / self.temperature - self._sums).numpy()
        return scores

    @cached_property
    def _sums(self) -> Tensor:
        """(M,) float64, what makes logarithms of probabilities of the logits; by part, to save memory."""
        parts = self.logits.split(1024)
        return torch.cat([(part.double() / self.temperature).logsumexp(dim=1) for part in parts])


@dataclass(frozen=True)
class Answers:
    """The answers of every head to N images, without the broken ones, on the CPU."""

    heads: dict[str, HeadAnswers]
    """``conv``, ``trans`` and ``fused``, or ``fused`` alone for a network with one head."""
    labels: Array
    """(N,) int64, true classes."""
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


class Collector:
    """Collects answers batch by batch; of the logits all, or those of an evenly drawn part of the images.

    Args:
        images: Number of images; None for a stream of unknown length, of which the first ones are kept.
        classes: K.
        temperature: Of the fused head; the others' is 1.
        keep_all: Keep the logits of all images, whatever memory that takes.
    """

    def __init__(
        self, images: int | None, *, classes: int, temperature: float, keep_all: bool = False
    ) -> None:
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
            labels: (B,) int64, on the device of the logits.
            indices: (B,) as in `Answers`.
            order: (B,) as in `Answers`.
        """
        places = torch.arange(self._seen, self._seen + len(labels))
        self._seen += len(labels)
        most = max(MOST_KEPT // (self._classes * len(logits)), 1)
        every = max(math.ceil((self._images or 0) / most), 1)
        kept = ((places % every == 0) & (places < most * every)) | self._keep_all
        for head, values in logits.items():
            part = _summed_up(values, labels, self._temperature_of(head))
            self._parts.setdefault(head, []).append(part | {"logits": values.cpu()[kept]})
        self._numbers.append((labels.cpu(), indices, order))
        self._kept.append(places[kept])

    def finish(self, source: ImageSource | ImageStream, *, broken: list[tuple[int, int, str]]) -> Answers:
        """Join the batches; there must be one.

        Args:
            source: Of the images; it names them, and may group them.
            broken: Index, order and line of each image that could not be read.
        """
        heads = {}
        for head in list(self._parts):
            parts = self._parts.pop(head)
            columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in COLUMNS}
            logits = torch.cat([part["logits"] for part in parts])
            heads[head] = HeadAnswers(**columns, logits=logits, temperature=self._temperature_of(head))
        labels, indices, order = (torch.cat(column).numpy() for column in zip(*self._numbers, strict=True))
        groups = source.groups if isinstance(source, ImageSource) else None
        return Answers(
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


def _summed_up(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return the `COLUMNS` of a batch."""
    true = logits.gather(1, labels[:, None])
    # As for argmax, the first of equal classes comes first.
    before = (logits == true) & (torch.arange(logits.shape[1], device=logits.device) < labels[:, None])
    logs = (logits / temperature).log_softmax(dim=1)
    probabilities = logs.exp()
    columns = {
        "predicted": logits.argmax(dim=1),
        "rank": ((logits > true) | before).sum(dim=1),
        "confidence": probabilities.max(dim=1).values,
        "log_likelihood": logs.gather(1, labels[:, None])[:, 0],
        "squares": probabilities.square().sum(dim=1),
    }
    return {name: column.cpu() for name, column in columns.items()}


def at_temperature(answers: Answers, temperature: float) -> Answers:
    """Return the answers with the prediction at another temperature; the logits of all must be kept."""
    fused, labels = answers.heads[FUSED], torch.from_numpy(answers.labels)
    columns = {name: column.numpy() for name, column in _summed_up(fused.logits, labels, temperature).items()}
    changed = HeadAnswers(**columns, logits=fused.logits, temperature=temperature)
    return replace(answers, heads=answers.heads | {FUSED: changed})


def join(parts: Sequence[Answers]) -> Answers:
    """Join the answers of models of the same classes to different images, such as those of folds."""
    starts = np.cumsum([0, *(len(part.labels) for part in parts)])
    heads = {}
    for head in parts[0].heads:
        own = [part.heads[head] for part in parts]
        columns = {name: np.concatenate([getattr(each, name) for each in own]) for name in COLUMNS}
        # Logits that are at temperature 1 give the probabilities that each part had.
        logits = torch.cat([each.logits / each.temperature for each in own])
        heads[head] = HeadAnswers(**columns, logits=logits, temperature=1.0)
    groups = None
    if all(part.groups is not None for part in parts):
        groups = [group for part in parts for group in part.groups or ()]
    return Answers(
        heads,
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([part.order for part in parts]),
        np.concatenate([part.kept + start for part, start in zip(parts, starts, strict=False)]),
        names=[name for part in parts for name in part.names],
        groups=groups,
        broken=[broken for part in parts for broken in part.broken],
    )
