"""One pass of a model over labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from conformer_vision.data import ImageSource
from conformer_vision.data.loader import Batch, evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.inference.trained_model import TrainedModel


@dataclass(frozen=True)
class Answers:
    """The logits of every head for a batch of images, without the broken ones."""

    logits: dict[str, Tensor]
    """Head -> (B, K) float32, on the model's device; all finite."""
    labels: Tensor
    """(B,) int64, true classes, on the model's device."""
    indices: Tensor
    """(B,) int64, on the CPU: numbers of the images in their source; -1 for a stream."""
    order: Tensor
    """(B,) int64, on the CPU: numbers of the images in the pass from 0, counting broken ones."""


def answers(
    trained: TrainedModel,
    source: ImageSource | ImageStream,
    *,
    batch_size: int,
    workers: int,
    broken: list[str],
) -> Iterator[Answers]:
    """Run every image of a source through a model once, batch by batch.

    Args:
        trained: The model.
        source: The images.
        batch_size: Images per forward pass.
        workers: Processes that read images; 0 reads them in this one.
        broken: Receives one line, with the name and the reason, for each image that cannot be read.

    Raises:
        UserError: An output that is not finite, an invalid batch size or number of workers, or no image that
            can be read.
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
    """Load the images as the model takes them, in an order that depends on the number of workers alone."""
    return iter(evaluation_loader(source, trained.transform, batch_size=batch_size, workers=workers))
