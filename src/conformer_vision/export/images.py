"""Real images to check and calibrate with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import ImageSource
from conformer_vision.data.base import SubsetSource, is_counted
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.preprocessing import evaluation_transform
from conformer_vision.spec import ModelSpec

_BATCH = 8


def sample_photos(spec: ModelSpec) -> Tensor:
    """Prepare eight crops (8, C, H, W) of the two photos that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    transform = evaluation_transform(spec)
    crops = []
    for photo in load_sample_images().images:
        image = Image.fromarray(photo)
        width, height = image.size
        for left, top in ((0, 0), (width // 3, 0), (0, height // 3), (width // 3, height // 3)):
            crops.append(transform(image.crop((left, top, left + width * 2 // 3, top + height * 2 // 3))))
    return torch.stack(crops)


def prepared(source: ImageSource | ImageStream, spec: ModelSpec, *, count: int) -> Iterator[Tensor]:
    """Prepare batches (B, C, H, W) of up to ``count`` readable images, drawn evenly from a source."""
    if isinstance(source, ImageSource):
        step = max(len(source) // count, 1)
        source = SubsetSource(source, range(0, len(source), step)[:count])
    loader = evaluation_loader(source, evaluation_transform(spec), batch_size=_BATCH, workers=0)
    for batch in islice(loader, -(-count // _BATCH)):
        readable = batch.images[is_counted(batch.labels)]
        if len(readable):
            yield readable
