"""Batches of transformed images."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from multiprocessing.util import get_temp_dir
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from conformer_vision.console import note
from conformer_vision.errors import UserError
from conformer_vision.preprocessing import Reader, read_through
from conformer_vision.tensors import Transform

from .base import NOT_COUNTED, ImageSource
from .collate import Sample, collate
from .handover import (
    Batch,
    Parcel,
    WaitingEnded,
    check_descriptors,
    end_workers,
    lost,
    no_child_handler,
    prepare_worker,
    remember,
    started_or_ended,
)
from .images import BrokenImageError, ReadingError, machine_reason, reading_error
from .order import Draw, EvaluationOrder, Sampling, Share, TrainingOrder, check_sampling
from .stream import ImageStream
from .stream_order import StreamOrder

MOST_REPLACED = 100
"""Number of broken images in a row that ends training."""


class ImageLoader(DataLoader[Any]):
    """Batches of images that are read and transformed one by one.

    Attributes:
        position: in training: returns the epoch and the number of its first batch, both from 0, when
            an iteration begins. None makes each iteration the next whole epoch.
        waiting: makes the context in which the loader waits for a batch. It may raise `WaitingEnded` within.
        reads_on: whether this process then reads what is left itself, as the caller cannot end there. Without
            it, `WaitingEnded` goes on to the caller. The workers have been ended in either case.
    """

    def __init__(
        self,
        dataset: Dataset[Sample | UserError],
        order: TrainingOrder | EvaluationOrder | StreamOrder,
        *,
        source: ImageSource | ImageStream,
        workers: int,
    ) -> None:
        if workers < 0:
            raise UserError(f"workers {workers}: must be 0 or more")
        self.position: Callable[[], tuple[int, int]] | None = None
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        self.reads_on: Callable[[], bool] = lambda: False
        self._order = order
        self._next_epoch = 0
        self._collate = partial(collate, classes=len(source.classes) if source.multilabel else None)
        batches: dict[str, Any] = {"batch_sampler": order}
        if isinstance(order, StreamOrder):
            batches = {"batch_size": order.per_batch, "drop_last": order.endless}
        with _no_advice():
            super().__init__(
                dataset,
                **batches,
                num_workers=workers,
                collate_fn=self._collate,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=prepare_worker,
                persistent_workers=workers > 0,
            )

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        start = 0
        if not isinstance(self._order, EvaluationOrder):
            epoch, start = (self._next_epoch, 0) if self.position is None else self.position()
            self._next_epoch = epoch + 1
            self._order.begin(epoch, start)
        batches: Iterator[Batch | UserError] | None = None
        taken = 0
        while True:
            try:
                with self._failures_named(), self.waiting():
                    if batches is None:  # its truth would be its length, which a stream does not have
                        batches = self._begin(start)
                    batch = next(batches, None)
            except WaitingEnded:
                end_workers()
                self._iterator = None
                if isinstance(self._order, StreamOrder) or not self.reads_on():
                    raise
                batches = map(self._read_here, islice(self._order, taken, None))
                continue
            taken += 1
            if batch is None:
                return
            if isinstance(batch, UserError):
                try:
                    # If the worker raised it, its message would hold a traceback.
                    raise (isinstance(batch, ReadingError) and self._lost()) or batch
                finally:
                    del batch  # its traceback holds this frame; the cycle would keep the workers alive
            yield batch

    def _begin(self, start: int) -> Iterator[Batch | UserError]:
        """Start the workers, or as many as the machine can start, and let them read from a batch on."""
        wanted = self.num_workers
        while True:
            try:
                if self.num_workers and self._iterator is None:
                    check_descriptors(self.num_workers)
                    get_temp_dir()  # the workers inherit it; those of their own would stay if they are killed
                with _no_advice(), started_or_ended(), no_child_handler():
                    batches: Iterator[Batch | UserError] = super().__iter__()
            except OSError as error:  # no more processes, descriptors or semaphores
                if not self.num_workers:
                    raise reading_error("images", error) from error
                reason = machine_reason(error)
                self.num_workers //= 2
                continue
            remember(self._workers())
            if self.num_workers < wanted:
                note(f"reading with {self.num_workers} workers instead of {wanted}: {reason}")
            if isinstance(self._order, StreamOrder) and self._order.endless:
                batches = islice(batches, len(self) - start)
            return batches

    def _read_here(self, draws: list[Draw]) -> Batch | UserError:
        assert isinstance(self.dataset, _Transformed)
        batch = self._collate(self.dataset.__getitems__(draws))
        assert not isinstance(batch, Parcel)
        return batch

    def _workers(self) -> list[Any]:
        return list(getattr(self._iterator, "_workers", ()))

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Turn torch's error for a worker that has ended into one line."""
        try:
            yield
        except RuntimeError as error:
            if (ended := self._lost()) is None:
                raise
            raise ended from error

    def _lost(self) -> ReadingError | None:
        """Return how a worker has ended, if one has; another iteration then starts other workers."""
        ended = lost(self._workers())
        if ended is not None and self._iterator is not None:
            self._iterator.__del__()  # type: ignore[attr-defined]  # frames of an error may hold it
            self._iterator = None
        return ended


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
    """Load augmented batches, in a new order in every epoch; see `TrainingOrder`.

    The seed decides order and augmentation, whatever the number of workers. A broken image is replaced
    by the next one of the source and named in the batch.

    Args:
        source: the images.
        transform: from RGB image to tensor; see `transforms.build_transform`. A function of
            one's own gets every image in full.
        batch_size: images per step of the optimizer, over all processes.
        workers: processes that read images and stay between epochs; 0 reads in this process.
        seed: see above.
        share: this process among those that train together.
        accumulate: batches per step.
        sampling: ``shuffle`` or ``balanced``.
        repeats: how often an epoch shows an image.
        epoch_images: number of images in an epoch of a stream, whose length may be unknown.

    Raises:
        UserError: a value out of range. Iteration raises `BrokenImageError` if a hundred images in a
            row are broken.
    """
    _check_batch_size(batch_size)
    check_sampling(sampling, source)
    if isinstance(source, ImageStream):
        order = StreamOrder(
            source, batch_size, seed=seed, share=share, accumulate=accumulate, images=epoch_images
        )
        return ImageLoader(_Streamed(order, transform), order, source=source, workers=workers)
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
        _Transformed(source, transform, replace_broken=True), batches, source=source, workers=workers
    )


def evaluation_loader(
    source: ImageSource | ImageStream,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    share: Share = Share(),  # noqa: B008  # immutable
) -> ImageLoader:
    """Load every image once over all processes; a broken one is named, with the label `NOT_COUNTED`.

    Args:
        source: the images.
        transform: as for `training_loader`.
        batch_size: images per batch and process.
        workers: processes that read images; 0 reads in this one.
        share: this process among those that evaluate together.

    Raises:
        UserError: a batch size or number of workers out of range.
    """
    _check_batch_size(batch_size)
    if isinstance(source, ImageStream):
        order = StreamOrder(source, batch_size, seed=None, share=share)
        return ImageLoader(_Streamed(order, transform), order, source=source, workers=workers)
    batches = EvaluationOrder(len(source), batch_size, share=share)
    return ImageLoader(
        _Transformed(source, transform, replace_broken=False), batches, source=source, workers=workers
    )


class _Transformed(Dataset[Sample | UserError]):
    """Transformed images of a source, each as an order draws it."""

    def __init__(self, source: ImageSource, transform: Transform, *, replace_broken: bool) -> None:
        self._source = source
        self._transform = transform
        self._tries = min(MOST_REPLACED, len(source)) if replace_broken else 1
        self._replace_broken = replace_broken

    def __len__(self) -> int:
        return len(self._source)

    def __getitems__(self, draws: list[Draw]) -> list[Sample | UserError]:
        """Take a batch, as torch's DataLoader asks for it."""
        with _generators_kept():
            try:
                return [self._read(draw) for draw in draws]
            except _NAMED as error:
                return [_named(error)]

    def _read(self, draw: Draw) -> Sample | UserError:
        broken: list[str] = []
        for number in range(draw.number, draw.number + self._tries):
            index = number % len(self._source)
            try:
                tensor = _read(self._transform, partial(self._source.image, index), draw.seed)
            except BrokenImageError as error:
                broken.append(str(error))
                continue
            label = self._source.labels[index] if draw.counted else NOT_COUNTED
            return Sample(tensor, label, index, tuple(broken))
        if self._replace_broken:
            return _too_many(broken)
        return _missing(self._transform, draw.number, broken)


class _Streamed(IterableDataset[Sample | UserError]):
    """Transformed images of this worker's part of a stream."""

    def __init__(self, order: StreamOrder, transform: Transform) -> None:
        self._order = order
        self._transform = transform

    def __iter__(self) -> Iterator[Sample | UserError]:
        try:
            yield from self._read()
        except _NAMED as error:
            while True:  # until the batch is full: an incomplete one is dropped
                yield _named(error)

    def _read(self) -> Iterator[Sample | UserError]:
        broken: list[str] = []
        seeds: list[int | None] = []  # of the broken images, and then of the one that replaces them
        for item, seed in self._order.items():
            seeds.append(seed)
            try:
                with _generators_kept():
                    tensors = [_read(self._transform, item.image, each) for each in seeds]
            except BrokenImageError as error:
                broken.append(str(error))
                tensors = []
            if not tensors:
                if not self._order.endless:
                    yield _missing(self._transform, -1, broken)
                    broken, seeds = [], []
                while len(broken) == MOST_REPLACED:  # until the batch is full: an incomplete one is dropped
                    yield _too_many(broken)
                continue
            # The next good image replaces the broken ones before it, whatever was read earlier, so that
            # the number of images alone says where an epoch resumes.
            for tensor in tensors:
                yield Sample(tensor, item.label, -1, tuple(broken))
                broken = []
            seeds = []


def _read(transform: Transform, read: Reader, seed: int | None) -> Tensor:
    """Read an image and transform it, by the seed if there is one."""
    return read_through(transform, read, begin=partial(_seed_generators, seed))


def _seed_generators(seed: int | None) -> None:
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the generators that transforms draw from; dropout draws from them too, unless in a worker."""
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


def _missing(transform: Transform, index: int, broken: list[str]) -> Sample:
    black = transform(Image.new("RGB", (8, 8)))
    return Sample(torch.zeros_like(black), NOT_COUNTED, index, tuple(broken))


def _too_many(broken: list[str]) -> BrokenImageError:
    return BrokenImageError(f"{broken[0]}; nor can the {len(broken) - 1} images after it")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: must be 1 or more")


_NAMED = (UserError, OSError, MemoryError)
"""What ends reading without being a fault of the code, which needs a traceback."""


def _named(error: BaseException) -> UserError:
    return error if isinstance(error, UserError) else reading_error("images", error)


@contextmanager
def _no_advice() -> Iterator[None]:
    """Silence torch's advice on the number of workers, which is the user's decision."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield
