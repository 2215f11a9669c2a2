"""Batches of transformed pictures."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from conformer_vision.errors import UserError

from .base import ImageSource
from .images import BrokenImageError
from .transforms import Transform

Sample = tuple[Tensor, int]


class _Transformed(Dataset[Sample | BrokenImageError]):
    """Transformed pictures; a broken one is returned as its error, which ends the pass in `_ImageLoader`."""

    def __init__(self, source: ImageSource, transform: Transform) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | BrokenImageError:
        try:
            image, label = self.source[index]
        except BrokenImageError as error:
            return error
        return self.transform(image), label


class _ImageLoader(DataLoader[Any]):
    """Raises a broken picture's error in the process that reads the batches.

    Raised in a worker it would arrive with the worker's traceback as its message.
    """

    def __iter__(self) -> Iterator[list[Tensor]]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, BrokenImageError):
                raise batch
            yield batch


def build_loader(
    source: ImageSource,
    transform: Transform,
    *,
    batch_size: int,
    workers: int,
    shuffle: bool,
    seed: int,
    drop_last: bool,
) -> DataLoader[Any]:
    """Batches ``[images (B, C, H, W) float, labels (B,) int64]``.

    The seed decides the order, and the augmentation in worker processes, each epoch's of its own.
    With ``workers=0`` the augmentation draws from this process's generators (``random``, NumPy,
    torch), which the caller seeds.

    Args:
        source: the pictures.
        transform: from RGB picture to tensor; see `transforms.build_transform`.
        batch_size: pictures per batch.
        workers: processes that read pictures; they stay between epochs. 0 reads in this process.
        shuffle: a new order in every epoch.
        seed: see above.
        drop_last: leave out the last batch where it is incomplete.

    Raises:
        UserError: a batch size or number of workers that cannot be. Iteration raises
            `BrokenImageError`.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: must be 1 or more")
    if workers < 0:
        raise UserError(f"workers {workers}: must be 0 or more")
    if drop_last and len(source) < batch_size:
        raise UserError(
            f"batch_size {batch_size} is more than the {len(source)} pictures; give a smaller one"
        )
    return _ImageLoader(
        _Transformed(source, transform),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=_collate,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        # torch seeds random, NumPy and itself in every worker from this generator.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_ignore_interrupt,
        persistent_workers=workers > 0,
    )


def _collate(samples: list[Sample | BrokenImageError]) -> Any:
    broken = next((sample for sample in samples if isinstance(sample, BrokenImageError)), None)
    return default_collate(samples) if broken is None else broken


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C goes to the whole process group; the main process decides when the workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
