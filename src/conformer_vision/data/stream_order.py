"""Which images of a stream make which batch, so that an epoch can resume at any batch."""

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

    Every worker of every process reads its own part. In training, a part that ends early starts again in
    another order, so all processes have equally many batches; in evaluation every image comes once.

    Args:
        stream: the images.
        batch_size: images per step over all processes in training, per batch in evaluation.
        seed: decides the order and the augmentation; None for evaluation, in the stored order.
        share: this process.
        accumulate: batches per step and process.
        images: number of images in an epoch; the stream's length if None.

    Raises:
        UserError: training on a stream of unknown length without ``images``, or with fewer than a step
            takes.
    """

    def __init__(
        self,
        stream: ImageStream,
        batch_size: int,
        *,
        seed: int | None,
        share: Share,
        accumulate: int = 1,
        images: int | None = None,
    ) -> None:
        self.stream = stream
        self.seed = seed
        self.share = share
        self.per_batch = batch_size
        self._length: int | None = None
        # Epoch and first batch. Persistent workers see them change, as the memory is shared.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        if seed is None:
            return
        self.per_batch = images_per_batch(batch_size, share.world_size, accumulate)
        total = stream.length if images is None else images
        if total is None:
            raise UserError("the length of this stream is unknown; give epoch_images, the images per epoch")
        if total < batch_size:
            raise UserError(
                f"batch_size {batch_size} is more than the {total} images of an epoch; give a smaller one"
            )
        self._length = total // batch_size * accumulate

    def __len__(self) -> int:
        """Batches per epoch of training for this process."""
        if self._length is None:
            raise TypeError("the number of batches in a stream is unknown")
        return self._length

    @property
    def endless(self) -> bool:
        """Whether parts start again at their end: in training."""
        return self._length is not None

    def begin(self, epoch: int, start: int) -> None:
        """Set the epoch to read and the number of its first batch, both from 0."""
        self._position[:] = torch.tensor([epoch, start])

    def items(self) -> Iterator[tuple[StreamedImage, int | None]]:
        """Yield images of this worker's part, each with the seed of its augmentation."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        rank, world_size = self.share
        parts = world_size * workers
        if self.seed is None:
            for item in self.stream.read(seed=None, part=rank * workers + worker, parts=parts):
                yield item, None
            return
        epoch, start = self._position.tolist()
        # DataLoader takes batches from its workers in turn, beginning with the first one even if the epoch
        # resumes in the middle: this worker reads the part whose turn it then is.
        turn = (start + worker) % workers
        part = rank * workers + turn
        skip = len(range(turn, start, workers)) * self.per_batch
        seeds = np.random.default_rng((self.seed, epoch, part))
        seeds.bit_generator.advance(skip)  # type: ignore[attr-defined]
        for item in self._endless((self.seed, epoch), part, parts, skip):
            yield item, int(seeds.bit_generator.random_raw() >> 1)

    def _endless(self, seed: tuple[int, int], part: int, parts: int, skip: int) -> Iterator[StreamedImage]:
        again = 0
        while True:
            order = int(np.random.SeedSequence((*seed, again)).generate_state(1)[0])
            items = self.stream.read(seed=order, part=part, parts=parts, start=skip)
            first = next(items, None)
            if first is not None:
                yield first
                yield from items
                skip = 0
            else:  # the part is empty, or shorter than what was read of it: it had started again
                length = sum(1 for _ in self.stream.read(seed=order, part=part, parts=parts)) if skip else 0
                if length == 0:
                    return
                skip -= length
            again += 1
