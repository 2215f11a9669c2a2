"""Small copies of images as data that a page holds itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.data.stream import ImageStream
from conformer_vision.inference.answers import batches
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.pages import data_uri
from conformer_vision.report.analysis import Outcome
from conformer_vision.spec import ModelSpec

EDGE = 96
"""Pixels of a small copy's longer edge, at most."""


@dataclass(frozen=True)
class Thumbnail:
    """An image of the page."""

    name: str
    """As the source names it."""
    data: str | None
    """``data:image/...`` URI; None where the image could not be read again."""


def thumbnails(
    rows: Collection[int],
    outcome: Outcome,
    source: ImageSource | ImageStream,
    *,
    trained: TrainedModel,
    batch_size: int,
    workers: int,
) -> dict[int, Thumbnail]:
    """Small copies of the images in some rows of an outcome.

    An image of a stream cannot be taken by number: the stream is read once more, and the copy is
    of what the network sees.

    Args:
        rows: numbers from 0 to N - 1.
        outcome: of the pass.
        source: its images.
        trained: the model of the pass.
        batch_size: that of the pass.
        workers: that of the pass, as it decides the order of a stream.
    """
    if isinstance(source, ImageSource):
        return {row: _by_number(source, int(outcome.indices[row])) for row in rows}
    wanted = {int(outcome.order[row]): row for row in rows}
    found: dict[int, Thumbnail] = {}
    seen = 0
    for batch in batches(trained, source, batch_size=batch_size, workers=workers):
        for place in range(len(batch.labels)):
            if (row := wanted.get(seen + place)) is not None:
                image = as_seen(batch.images[place], trained.spec)
                found[row] = Thumbnail(f"image {seen + place + 1} of the stream", data_uri(image, edge=EDGE))
        seen += len(batch.labels)
        if len(found) == len(wanted):
            break
    return found


def as_seen(image: Tensor, spec: ModelSpec) -> Image.Image:
    """A network's input (C, H, W) as an image."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _by_number(source: ImageSource, index: int) -> Thumbnail:
    try:
        return Thumbnail(source.name(index), data_uri(source.image(index), edge=EDGE))
    except BrokenImageError:  # it was there a minute ago; the answer is known all the same
        return Thumbnail(source.name(index), None)
