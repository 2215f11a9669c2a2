"""Which images of a stream make which batch, so that an epoch can go on where it was left."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import get_worker_info

from conformer_vision.errors import UserError

from .order import Share, images_per_batch
from .stream import ImageStream, StreamedImage


class StreamOrder:
    """The parts of a stream that processes and their workers read, batch by batch.

    Every worker of every process reads a part of its own. In training a part that ends early begins
    again in another order, so that all processes have equally many batches; in evaluation every
    image comes once.

    Args:
        stream: the images.
        batch_size: images per step over all processes in training, per batch in evaluation.
        seed: decides the order and the augmentation; None for evaluation, in the stored order.
        share: this process.
        accumulate: batches per step and process.
        images: images that make an epoch; the stream's length where None.

    Raises:
        UserError: training on a stream that does not know its length, without ``images``, or with
            fewer than a step takes.
    """

    def __init__(
        self,
        stream: ImageStream,
        batch_size: int,
        *,
        seed: int | None,
        share: Share,
        accumulate: int,
        images: int | None,
    ) -> None:
        self.stream = stream
        self.seed = seed
        self.share = share
        self.endless = seed is not None
        self.per_batch = batch_size
        self._length = 0
        # Shared memory: workers stay over the epochs and see these numbers change.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        if self.endless:
            self.per_batch = images_per_batch(batch_size, share.world_size, accumulate)
            total = stream.length if images is None else images
            if total is None:
                raise UserError(
                    "the length of this stream is not known; give epoch_images, the images of an epoch"
                )
            if total < batch_size:
                raise UserError(
                    f"batch_size {batch_size} is more than the {total} images of an epoch; give a smaller one"
                )
            self._length = total // batch_size * accumulate

    def __len__(self) -> int:
        """Batches of an epoch of training for this process."""
        return self._length

    @property
    def epoch(self) -> int:
        """The epoch to read, from 0."""
        return int(self._position[0])

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._position[0] = value

    @property
    def start(self) -> int:
        """Number of its batch to begin at."""
        return int(self._position[1])

    @start.setter
    def start(self, value: int) -> None:
        self._position[1] = value

    def items(self) -> Iterator[tuple[StreamedImage, int | None]]:
        """Images of this worker's part, each with the seed of its augmentation."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rank, world_size = self.share
        if not self.endless:
            for item in self.stream.read(seed=None, part=rank * workers + worker, parts=world_size * workers):
                yield item, None
            return
        # DataLoader takes batches from its workers in turn, from the first one on, also where an epoch
        # goes on: this worker reads the part whose turn it then is.
        turn = (self.start + worker) % workers
        part, parts = rank * workers + turn, world_size * workers
        skip = len(range(turn, self.start, workers)) * self.per_batch
        seeds = np.random.default_rng((self.seed or 0, self.epoch, part))
        seeds.bit_generator.advance(skip)  # type: ignore[attr-defined]
        for item in self._endless(part, parts, skip):
            yield item, int(seeds.bit_generator.random_raw() >> 1)

    def _endless(self, part: int, parts: int, skip: int) -> Iterator[StreamedImage]:
        again = 0
        while True:
            items = self.stream.read(seed=self._pass_seed(again), part=part, parts=parts, start=skip)
            first = next(items, None)
            if first is not None:
                yield first
                yield from items
                skip = 0
            elif skip == 0:
                return  # an empty part
            else:  # the part is shorter than what has been read of it: it had begun again
                length = sum(1 for _ in self.stream.read(seed=self._pass_seed(again), part=part, parts=parts))
                if length == 0:
                    return
                skip -= length
            again += 1

    def _pass_seed(self, again: int) -> int:
        state = np.random.SeedSequence((self.seed or 0, self.epoch, again)).generate_state(1)
        return int(state[0])
