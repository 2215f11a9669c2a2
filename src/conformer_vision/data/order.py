"""Which images make which batch.

A batch depends on the seed, the epoch and its own number alone, not on the worker that reads it or on what
was read before. So a run can resume in the middle of an epoch with other workers and draw the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from conformer_vision.errors import UserError, option

from .base import ImageSource, Label
from .stream import ImageStream

Sampling = Literal["shuffle", "balanced"]


class Draw(NamedTuple):
    """One image of a batch."""

    number: int
    """Its number in the source."""
    seed: int | None = None
    """Seed of its augmentation; None draws from no seed."""
    counted: bool = True
    """False for an image that only fills up a batch, so that all processes have equally many."""


class Share(NamedTuple):
    """One of the processes that train together."""

    rank: int = 0
    world_size: int = 1


class TrainingOrder(Sampler[list[Draw]]):
    """Batches of one epoch, as a batch sampler of torch's DataLoader.

    A step of the optimizer takes ``batch_size`` images over all processes, in ``accumulate`` batches
    each. An epoch ends with its last full step; the images left over are dropped.

    Args:
        labels: one per image.
        batch_size: images per step, over all processes.
        seed: seed of the order and the augmentation.
        share: this process.
        accumulate: batches per step and process.
        sampling: ``shuffle`` takes every image once an epoch; ``balanced`` draws with replacement
            so that all classes are equally frequent.
        repeats: how often an epoch shows an image, each time with new augmentation; the length of an
            epoch stays the same (repeated augmentation, Hoffer et al. 2020). 1 turns it off.

    Raises:
        UserError: a batch size that cannot be split evenly, or is larger than the number of images.
    """

    def __init__(
        self,
        labels: Sequence[Label],
        batch_size: int,
        *,
        seed: int,
        share: Share = Share(),  # noqa: B008  # immutable
        accumulate: int = 1,
        sampling: Sampling = "shuffle",
        repeats: int = 1,
    ) -> None:
        if len(labels) < batch_size:
            raise UserError(
                f"batch_size {batch_size} is more than the {len(labels)} images; give a smaller one"
            )
        self.per_batch = images_per_batch(batch_size, share.world_size, accumulate)
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        self.accumulate = accumulate
        self.repeats = repeats
        self._epoch = 0
        self._start = 0
        self._images = len(labels)
        self._weights = _class_weights(labels) if sampling == "balanced" else None

    def begin(self, epoch: int, start: int) -> None:
        """Set the epoch to iterate over and the number of its first batch, both from 0."""
        self._epoch, self._start = epoch, start

    def __len__(self) -> int:
        """Batches per epoch for this process."""
        return self._images // self.batch_size * self.accumulate

    def __iter__(self) -> Iterator[list[Draw]]:
        indices, seeds = self._drawn()
        rank, world_size = self.share
        for number in range(self._start, len(self)):
            step, part = divmod(number, self.accumulate)
            # Interleaved: repeats of an image go to different batches, and two processes take the same
            # batches as one process that accumulates two.
            first = step * self.batch_size + part * world_size + rank
            mine = slice(first, (step + 1) * self.batch_size, world_size * self.accumulate)
            pairs = zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True)
            yield [Draw(number, seed) for number, seed in pairs]

    def _drawn(self) -> tuple[NDArray[Any], NDArray[Any]]:
        rng = np.random.default_rng((self.seed, self._epoch))
        if self._weights is not None:
            indices = rng.choice(self._images, size=self._images, p=self._weights)
        else:
            indices = rng.permutation(self._images)
        indices = np.repeat(indices[: -(-self._images // self.repeats)], self.repeats)[: self._images]
        return indices, rng.integers(2**63, size=self._images)


class EvaluationOrder(Sampler[list[Draw]]):
    """Every image once over all processes, in the source's order, as a batch sampler.

    All processes have equally many batches of equal sizes: a process that is an image short gets one
    that does not count.

    Args:
        images: number of images.
        batch_size: images per batch and process.
        share: this process.
    """

    def __init__(self, images: int, batch_size: int, *, share: Share = Share()) -> None:  # noqa: B008
        self.batch_size = batch_size
        rank, world_size = share
        each = -(-images // world_size)
        places = range(rank, each * world_size, world_size)
        self._draws = [Draw(place % images, counted=place < images) for place in places]

    def __len__(self) -> int:
        return -(-len(self._draws) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        for start in range(0, len(self._draws), self.batch_size):
            yield self._draws[start : start + self.batch_size]


def images_per_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """Return the number of images in one forward pass of one process.

    Raises:
        UserError: the images of a step cannot be split evenly.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        shared = [f"{world_size} processes"] * (world_size > 1) + [f"accumulate {accumulate}"] * (
            accumulate > 1
        )
        lower = batch_size // parts * parts or parts
        raise UserError(
            f"batch_size {batch_size}: cannot be shared evenly by {' and '.join(shared)}; give {lower}"
        )
    return batch_size // parts


def check_sampling(sampling: Sampling, images: ImageSource | ImageStream) -> None:
    """Refuse to draw classes equally often where an image may have several.

    Raises:
        UserError: so.
    """
    if sampling == "balanced" and images.multilabel:
        given, other = option("sampling", sampling), option("class_weights", "balanced")
        raise UserError(
            f"{given}: images with several labels cannot be drawn so that all classes are equally frequent; "
            f"give {other}, which evens out the loss"
        )


def _class_weights(labels: Sequence[Label]) -> NDArray[np.float64]:
    array = np.asarray(labels)
    weights = 1.0 / np.bincount(array)[array]
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised
