"""Collecting what a model answers to labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from conformer_vision.data import ImageSource, ImageStream
from conformer_vision.data.base import is_counted
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.errors import UserError
from conformer_vision.inference.answers import AnswersOf, Collector
from conformer_vision.inference.task import task_of
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.runtime.base import Array, Outputs


def collect_answers(
    trained: TrainedModel,
    source: ImageSource | ImageStream,
    *,
    batch_size: int,
    workers: int,
    temperature: float | None = None,
    keep_all: bool = False,
    watch: Callable[[Outputs, Array], None] | None = None,
) -> AnswersOf[Any]:
    """Collect what a model answers to the images of an open source; see `evaluation.evaluate_images`."""
    classes = trained.spec.classes
    if len(classes) < 2:
        raise UserError(f"{trained.path} has a single class ({classes[0]}); there is nothing to evaluate")
    length = len(source) if isinstance(source, ImageSource) else source.length
    collector: Collector[Any] = Collector(
        length,
        kind=task_of(trained.spec).kind,
        classes=len(classes),
        temperature=trained.spec.temperature if temperature is None else temperature,
        keep_all=keep_all,
    )
    broken: list[tuple[int, int, str]] = []
    seen = 0
    images = batch_size if isinstance(source, ImageStream) else min(batch_size, len(source))
    trained.check_batch(images, read_ahead=2 * workers)
    trained.prepare(length, batch_size=batch_size)
    transform = trained.transform.then(torch.from_numpy)
    for batch in evaluation_loader(source, transform, batch_size=batch_size, workers=workers):
        order = torch.arange(seen, seen + len(batch.labels))
        read = is_counted(batch.labels)
        lost = zip(batch.indices[~read].tolist(), order[~read].tolist(), batch.broken, strict=True)
        broken += lost
        if read.any():
            outputs, labels = trained.outputs(batch.images[read].numpy()), batch.labels[read]
            if not all(np.isfinite(values).all() for values in outputs.logits.values()):
                raise UserError(f"the output of the model {trained.path} is not finite; train it again")
            logits = {head: torch.from_numpy(values) for head, values in outputs.logits.items()}
            collector.add(logits, labels, batch.indices[read], order[read])
            if watch is not None:
                watch(outputs, labels.numpy())
        seen += len(batch.labels)
    if not collector.seen:
        raise UserError(
            f"none of the {seen} images can be read; the first: {broken[0][2] if broken else '-'}"
        )
    return collector.finish(source, broken=broken)
