"""Thumbnails as data inside a page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.pages import data_uri
from conformer_vision.report.analysis import Outcome
from conformer_vision.spec import ModelSpec

EDGE = 96
"""Longest edge of a thumbnail, in pixels."""


@dataclass(frozen=True)
class Thumbnail:
    """One image on the page."""

    name: str
    """As the source names it."""
    data: str | None
    """``data:image/...`` URI; None if the image could not be read again."""


def thumbnails(
    rows: Collection[int],
    outcome: Outcome,
    source: ImageSource | ImageStream,
    *,
    trained: TrainedModel,
    batch_size: int,
    workers: int,
) -> dict[int, Thumbnail]:
    """Make thumbnails of the images in some rows of an outcome.

    Images of a stream have no numbers: the stream is read once more, and the thumbnails show what the
    network sees.

    Args:
        rows: numbers from 0 to N - 1.
        outcome: has the predictions.
        source: its images.
        trained: the model that made them.
        batch_size: as for the predictions.
        workers: as for the predictions, since it decides the order of a stream.
    """
    if isinstance(source, ImageSource):
        return {row: _by_number(source, int(outcome.indices[row])) for row in rows}
    wanted = {int(outcome.order[row]): row for row in rows}
    found: dict[int, Thumbnail] = {}
    seen = 0
    for batch in evaluation_loader(source, trained.transform, batch_size=batch_size, workers=workers):
        for place in range(len(batch.labels)):
            if (row := wanted.get(seen + place)) is not None:
                image = as_seen(batch.images[place], trained.spec)
                found[row] = Thumbnail(f"image {seen + place + 1} of the stream", data_uri(image, edge=EDGE))
        seen += len(batch.labels)
        if len(found) == len(wanted):
            break
    return found


def as_seen(image: Tensor, spec: ModelSpec) -> Image.Image:
    """Turn a network's input (C, H, W) into an image."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _by_number(source: ImageSource, index: int) -> Thumbnail:
    try:
        return Thumbnail(source.name(index), data_uri(source.image(index), edge=EDGE))
    except BrokenImageError:  # readable a minute ago; the prediction is known all the same
        return Thumbnail(source.name(index), None)
