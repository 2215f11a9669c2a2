"""Real images to check and calibrate with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import ImageSource
from conformer_vision.data.base import SubsetSource, is_counted
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.data.stream import ImageStream
from conformer_vision.errors import UserError
from conformer_vision.inference.labelled import Data, LabelledImages, read_run_data
from conformer_vision.runs import ModelSource
from conformer_vision.spec import ModelSpec
from conformer_vision.tensors import evaluation_transform

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


def find_images(
    source: ModelSource, data: Data | None, spec: ModelSpec, *, calibrating: str | None
) -> LabelledImages | None:
    """Return the validation images that are given, else those of the run, where they can be opened.

    Args:
        source: Where the model comes from.
        data: What was given.
        spec: The model's specification.
        calibrating: What to do without images to calibrate with; None where they are not needed.

    Raises:
        UserError: Images that were given or are needed, and cannot be opened.
    """
    run = read_run_data(source.path)
    found = run.data if data is None else data
    hint = "precision int8 needs images to calibrate with"
    if found is None:
        if calibrating is not None:
            raise UserError(f"{hint}, and no config.yaml beside {source.path} names any; {calibrating}")
        return None
    images = LabelledImages(found, "val", run.splitting, data_dir=run.data_dir)
    try:
        images.open(spec)
        if calibrating is not None:
            replace(images, split="train").open(spec)
    except UserError as error:
        if data is None and calibrating is not None:
            raise UserError(
                f"{hint}, and those of the run cannot be opened ({error}); {calibrating}"
            ) from error
        if data is not None:
            raise
        return None
    return images


def calibration_of(images: LabelledImages, spec: ModelSpec, *, count: int) -> list[Tensor]:
    """Prepare the training images (B, C, H, W) that int8 is calibrated on."""
    return list(prepared(replace(images, split="train").open(spec), spec, count=count))
