"""Batches of transformed images."""

from __future__ import annotations

import atexit
import random
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from conformer_vision.errors import UserError
from conformer_vision.preprocessing import Transform

from .base import ImageSource
from .images import BrokenImageError
from .order import Draw, EvaluationOrder, Sampling, Share, TrainingOrder
from .stream import ImageStream
from .stream_order import StreamOrder

NOT_COUNTED = -100
"""Label of an image that is to be left out: broken, or there to fill a batch up (torch's ignore_index)."""
MOST_REPLACED = 100
"""Broken images in a row after which it is not single images that are broken."""


_WORKERS: weakref.WeakSet[BaseProcess] = weakref.WeakSet()


class Batch(NamedTuple):
    """Images of one forward pass."""

    images: Tensor
    """(B, C, H, W), normalised."""
    labels: Tensor
    """(B,), int64; `NOT_COUNTED` where there is nothing to count."""
    indices: Tensor
    """(B,), int64: number of each image in its source; -1 in a stream."""
    broken: list[str]
    """What was wrong with the images that could not be read, one line each with their names."""


class _Sample(NamedTuple):
    image: Tensor
    label: int
    number: int
    broken: tuple[str, ...] = ()


class Positioned:
    """What begins each iteration at an epoch and a batch.

    Attributes:
        position: for training: gives the epoch and the number of its batch to begin at, both from 0,
            when an iteration begins; without it each iteration is the next whole epoch.
    """

    def __init__(self) -> None:
        self.position: Callable[[], tuple[int, int]] | None = None
        self._next_epoch = 0

    def begin(self, order: object) -> int:
        """Sets an order for training to where the iteration begins, and gives the number of that batch."""
        epoch, start = (self._next_epoch, 0) if self.position is None else self.position()
        self._next_epoch = epoch + 1
        if isinstance(order, (TrainingOrder, StreamOrder)):
            order.epoch, order.start = epoch, start
        return start


class ImageLoader(Positioned, DataLoader[Any]):
    """Batches of images, read and transformed one by one."""

    def __init__(self, *arguments: Any, length: int | None = None, **options: Any) -> None:
        Positioned.__init__(self)
        self._length = length
        DataLoader.__init__(self, *arguments, **options)

    def __len__(self) -> int:
        return super().__len__() if self._length is None else self._length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        start = self.begin(self.dataset.order if isinstance(self.dataset, _Streamed) else self.batch_sampler)
        # Streams go on; the others end themselves.
        batches = islice(super().__iter__(), None if self._length is None else self._length - start)
        for batch in batches:
            _WORKERS.update(getattr(self._iterator, "_workers", ()))
            if isinstance(batch, BrokenImageError):
                try:
                    raise batch  # raised in a worker it would have the worker's traceback as its message
                finally:
                    del batch  # its traceback holds this frame: in a cycle, the workers would end late
            yield batch


def training_loader(
    source: ImageSource | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    share: Share = Share(),  # noqa: B008  # immutable
    accumulate: int = 1,
    sampling: Sampling = "shuffle",
    repeats: int = 1,
    epoch_images: int | None = None,
) -> ImageLoader:
    """Augmented batches in an order of their own in every epoch; see `TrainingOrder`.

    The seed decides order and augmentation, whatever the number of workers. A broken image is
    replaced by the next one of the source and named in the batch.

    Args:
        source: the images.
        transform: from RGB image to tensor; see `transforms.build_transform`.
        batch_size: images per step of the optimiser, over all processes.
        workers: processes that read images; they stay between epochs. 0 reads in this process.
        seed: see above.
        share: this process among those that train together.
        accumulate: batches per step.
        sampling: ``shuffle`` or ``balanced``.
        repeats: times that an epoch shows an image.
        epoch_images: images that make an epoch of a stream, which may not know its length.

    Raises:
        UserError: a value out of range. Iteration raises `BrokenImageError` where a hundred
            images in a row are broken.
    """
    _check(batch_size, workers)
    if isinstance(source, ImageStream):
        order = StreamOrder(
            source, batch_size, seed=seed, share=share, accumulate=accumulate, images=epoch_images
        )
        return ImageLoader(
            _Streamed(order, transform),
            batch_size=order.per_batch,
            drop_last=True,
            length=len(order),
            **_options(workers),
        )
    batches = TrainingOrder(
        source.labels,
        batch_size,
        seed=seed,
        share=share,
        accumulate=accumulate,
        sampling=sampling,
        repeats=repeats,
    )
    return ImageLoader(
        _Transformed(source, transform, replace_broken=True), batch_sampler=batches, **_options(workers)
    )


def evaluation_loader(
    source: ImageSource | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    share: Share = Share(),  # noqa: B008  # immutable
) -> ImageLoader:
    """Every image once over all processes; a broken one is named, and its label is `NOT_COUNTED`.

    Args:
        source: the images.
        transform: from RGB image to tensor.
        batch_size: images per batch and process.
        workers: processes that read images; 0 reads in this one.
        share: this process among those that evaluate together.

    Raises:
        UserError: a batch size or number of workers out of range.
    """
    _check(batch_size, workers)
    if isinstance(source, ImageStream):
        order = StreamOrder(source, batch_size, seed=None, share=share, accumulate=1, images=None)
        return ImageLoader(_Streamed(order, transform), batch_size=batch_size, **_options(workers))
    return ImageLoader(
        _Transformed(source, transform, replace_broken=False),
        batch_sampler=EvaluationOrder(len(source), batch_size, share=share),
        **_options(workers),
    )


class _Transformed(Dataset[_Sample | BrokenImageError]):
    """Transformed images by their draws."""

    def __init__(self, source: ImageSource, transform: Transform, *, replace_broken: bool) -> None:
        self.source = source
        self.transform = transform
        self.replace_broken = replace_broken

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, draw: Draw) -> _Sample | BrokenImageError:
        return self.__getitems__([draw])[0]

    def __getitems__(self, draws: list[Draw]) -> list[_Sample | BrokenImageError]:
        """What torch's DataLoader asks for a batch."""
        with generators_kept():
            return [self._read(draw) for draw in draws]

    def _read(self, draw: Draw) -> _Sample | BrokenImageError:
        broken: list[str] = []
        for ahead in range(min(MOST_REPLACED, len(self.source))):
            index = (draw.number + ahead) % len(self.source)
            try:
                image, label = self.source[index]
            except BrokenImageError as error:
                broken.append(str(error))
                if not self.replace_broken:
                    return _missing(self.transform, index, broken)
                continue
            label = label if draw.counted else NOT_COUNTED
            return _Sample(_transformed(self.transform, image, draw.seed), label, index, tuple(broken))
        return BrokenImageError(f"{broken[0]}; nor can the {len(broken) - 1} images after it")


class _Streamed(IterableDataset[_Sample | BrokenImageError]):
    """Transformed images of a stream; this worker's part of this process's share."""

    def __init__(self, order: StreamOrder, transform: Transform) -> None:
        self.order = order
        self.transform = transform

    def __iter__(self) -> Iterator[_Sample | BrokenImageError]:
        broken: list[str] = []
        waiting: list[int | None] = []  # the seeds of places whose images are broken
        for item, seed in self.order.items():
            if isinstance(item.image, BrokenImageError):
                broken.append(str(item.image))
                if not self.order.endless:
                    yield _missing(self.transform, -1, broken)
                    broken = []
                    continue
                waiting.append(seed)
                if len(waiting) == MOST_REPLACED:
                    error = BrokenImageError(f"{broken[0]}; nor can the {len(broken) - 1} images after it")
                    while True:  # until the batch is full: an incomplete one would be dropped
                        yield error
                continue
            # The next good image stands in for the broken ones before it, whatever was read earlier:
            # so an epoch goes on by the number of its images alone.
            for each in (*waiting, seed):
                with generators_kept():
                    tensor = _transformed(self.transform, item.image, each)
                yield _Sample(tensor, item.label, -1, tuple(broken))
                broken = []
            waiting = []


def _transformed(transform: Transform, image: Image.Image, seed: int | None) -> Tensor:
    if seed is not None:
        seed_generators(seed)
    return transform(image)


def seed_generators(seed: int) -> None:
    """Seed what transforms draw from: the generators of Python, NumPy and torch on the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def _missing(transform: Transform, index: int, broken: list[str]) -> _Sample:
    black = transform(Image.new("RGB", (8, 8)))
    return _Sample(torch.zeros_like(black), NOT_COUNTED, index, tuple(broken))


@contextmanager
def generators_kept() -> Iterator[None]:
    """After the block, the generators that transforms draw from are as they were before it.

    Without workers they are also those of dropout and stochastic depth; workers need not pay for this.
    """
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _check(batch_size: int, workers: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: must be 1 or more")
    if workers < 0:
        raise UserError(f"workers {workers}: must be 0 or more")


def _options(workers: int) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "collate_fn": _collate,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": _ignore_interrupt,
        "persistent_workers": workers > 0,
    }


def _collate(samples: list[_Sample | BrokenImageError]) -> Batch | BrokenImageError:
    good: list[_Sample] = []
    for sample in samples:
        if isinstance(sample, BrokenImageError):
            return sample
        good.append(sample)
    return Batch(
        torch.stack([sample.image for sample in good]),
        torch.tensor([sample.label for sample in good]),
        torch.tensor([sample.number for sample in good]),
        [line for sample in good for line in sample.broken],
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C and a scheduler's warning go to the whole process group; the main process ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """multiprocessing would end workers by SIGTERM, which they ignore, and wait for them without limit.

    Registered after its own hook, so it runs before; workers only read, so nothing is lost.
    """
    for worker in list(_WORKERS):
        if worker.is_alive():
            worker.kill()
