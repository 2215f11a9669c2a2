"""From samples to batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from conformer_vision.errors import UserError

from .base import Label
from .handover import Batch, Parcel, pack


class Sample(NamedTuple):
    """A transformed image, or what stands for one that cannot be read."""

    image: Tensor
    label: Label
    number: int
    broken: tuple[str, ...] = ()


def collate(samples: list[Sample | UserError], *, classes: int | None) -> Batch | Parcel | UserError:
    """Make a batch; ``classes`` is the number of classes where an image may have several of them."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
        good.append(sample)
    images = [sample.image for sample in good]
    each = [sample.label for sample in good]
    labels = torch.tensor(each) if classes is None else _multi_hot(each, classes)
    indices = torch.tensor([sample.number for sample in good])
    broken = [line for sample in good for line in sample.broken]
    if get_worker_info() is not None:
        return pack(images, labels, indices, broken)
    return Batch(torch.stack(images), labels, indices, broken)


def _multi_hot(labels: list[Label], classes: int) -> Tensor:
    """Return (B, K), float32: 1 for each class of an image; `NOT_COUNTED` all over for one to ignore."""
    batch = torch.zeros(len(labels), classes)
    for row, label in enumerate(labels):
        if isinstance(label, tuple):
            batch[row, list(label)] = 1
        else:
            batch[row] = label
    return batch
