"""One pass over labelled images: the logits of every head, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from conformer_vision.data import ImageSource
from conformer_vision.data.loader import Batch, evaluation_loader
from conformer_vision.data.streams.base import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class Answers:
    """The logits of every head for some images; the broken ones are left out."""

    logits: dict[str, Tensor]
    """Head -> (B, K) float32, on the model's device; all finite."""
    labels: Tensor
    """(B,) int64, true classes, on the model's device."""
    indices: Tensor
    """(B,) int64, on the CPU: numbers of the images in their source; -1 in a stream."""
    order: Tensor
    """(B,) int64, on the CPU: numbers of the images in the pass, broken ones counted too, from 0."""


def answers(
    trained: TrainedModel,
    source: ImageSource | ImageStream,
    *,
    batch_size: int,
    workers: int,
    broken: list[str],
) -> Iterator[Answers]:
    """Every image of a source once through a model, batch by batch.

    Args:
        trained: the model.
        source: the images.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads them in this one.
        broken: gets one line, with the name and the reason, for each image that cannot be read.

    Raises:
        UserError: an output that is not finite, a batch size or number of workers that cannot be, or
            no image that can be read.
    """
    seen = read = 0
    for batch in batches(trained, source, batch_size=batch_size, workers=workers):
        broken += batch.broken
        kept = (batch.labels >= 0).nonzero().flatten()
        if len(kept):
            heads = trained.logits(batch.images[kept])
            if not all(bool(logits.isfinite().all()) for logits in heads.values()):
                raise UserError(f"the output of the model {trained.path} is not finite; train it again")
            labels = batch.labels[kept].to(trained.device)
            yield Answers(heads, labels, batch.indices[kept], kept + seen)
        seen += len(batch.labels)
        read += len(kept)
    if not read:
        raise UserError(f"none of the {seen} images can be read; the first: {broken[0] if broken else '-'}")


def batches(
    trained: TrainedModel, source: ImageSource | ImageStream, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The images as the model takes them; always in the same order for one number of workers."""
    return iter(evaluation_loader(source, trained.transform, batch_size=batch_size, workers=workers))
