"""Thumbnails as data inside a page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from conformer_vision import pages
from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.explain import Explainer
from conformer_vision.explain.drawing import veil
from conformer_vision.preprocessing import Box, evaluation_transform
from conformer_vision.report.analysis import Outcome
from conformer_vision.report.explained import Place, evidence, place_of
from conformer_vision.spec import ModelSpec

EDGE = 240
"""Longest edge of an image, which is shown smaller until it is enlarged, in pixels."""
VIEWS = 2
"""Heat maps of an image: one of each branch."""


@dataclass(frozen=True)
class Thumbnail:
    """One image on the page."""

    name: str
    """As the source names it."""
    data: str | None
    """``data:image/...`` URI; None if the image could not be read again."""
    place: Place | None = None
    """Where the heat maps lie on it."""
    heat: dict[str, str] = field(default_factory=dict)
    """Heat maps of the predicted class by the title of their view, as URIs."""


def thumbnails(
    rows: Collection[int],
    outcome: Outcome,
    source: ImageSource | ImageStream,
    *,
    explainer: Explainer,
    batch_size: int,
    workers: int,
) -> dict[int, Thumbnail]:
    """Make thumbnails of the images in some rows of an outcome, with heat maps of what was predicted.

    Images of a stream have no numbers: the stream is read once more, and the thumbnails show what the
    network sees.

    Args:
        rows: numbers from 0 to N - 1.
        outcome: has the predictions.
        source: its images.
        explainer: the model that made them.
        batch_size: as for the predictions.
        workers: as for the predictions, since it decides the order of a stream.
    """
    predicted = outcome.logits.argmax(dim=1)
    if isinstance(source, ImageSource):
        return {
            row: _by_number(source, int(outcome.indices[row]), explainer, int(predicted[row])) for row in rows
        }
    wanted = {int(outcome.order[row]): row for row in rows}
    found: dict[int, Thumbnail] = {}
    seen = 0
    transform = evaluation_transform(explainer.spec)
    for batch in evaluation_loader(source, transform, batch_size=batch_size, workers=workers):
        for place in range(len(batch.labels)):
            if (row := wanted.get(seen + place)) is not None:
                name = f"image {seen + place + 1} of the stream"
                image = as_seen(batch.images[place], explainer.spec)
                whole = Box(0, 0, *image.size)
                tensor = batch.images[place][None].to(explainer.device)
                found[row] = _thumbnail(name, image, tensor, whole, explainer, int(predicted[row]))
        seen += len(batch.labels)
        if len(found) == len(wanted):
            break
    return found


def as_seen(image: Tensor, spec: ModelSpec) -> Image.Image:
    """Turn a network's input (C, H, W) into an image."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def _by_number(source: ImageSource, index: int, explainer: Explainer, number: int) -> Thumbnail:
    try:
        image = source.image(index)
    except BrokenImageError:  # readable a minute ago; the prediction is known all the same
        return Thumbnail(source.name(index), None)
    batch, seen = explainer.prepare(image)
    return _thumbnail(source.name(index), image, batch, seen, explainer, number)


def _thumbnail(
    name: str, image: Image.Image, batch: Tensor, seen: Box, explainer: Explainer, number: int
) -> Thumbnail:
    found = evidence(explainer.model, batch, [number], views=VIEWS)
    heat = {title: pages.png_uri(veil(maps[0])) for title, maps in found.items()}
    return Thumbnail(name, pages.data_uri(image, edge=EDGE), place_of(seen, image.size), heat)
