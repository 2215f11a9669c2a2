"""The features of a run's initial weights: what fine-tuning had to beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from conformer_vision.data import ImageSource, ImageStream
from conformer_vision.errors import UserError
from conformer_vision.inference.labelled import LabelledImages
from conformer_vision.inference.probing import Probe, probe_features
from conformer_vision.models.checkpoints import load_checkpoint
from conformer_vision.runs import read_run_values
from conformer_vision.spec import ModelSpec

_KINDS: dict[str, Any] = {"pretrained": bool | None, "checkpoint": str | None}


def probe_start(
    folder: Path,
    spec: ModelSpec,
    train: LabelledImages,
    val: ImageSource | ImageStream,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> Probe | str | None:
    """Probe the initial weights of a run on its images.

    Returns:
        What came out; why there is nothing; or None for a run from scratch and for streams, where there is
        nothing to say.
    """
    if isinstance(val, ImageStream):
        return None
    try:
        model = _initial_weights(folder, spec)
        if model is None:
            return None
        images = train.open(spec)
        assert isinstance(images, ImageSource)
        return probe_features(model, spec, images, val, device=device, batch_size=batch_size, workers=workers)
    except UserError as error:
        return f"The features of the initial weights were not probed: {error}."


def _initial_weights(folder: Path, spec: ModelSpec) -> nn.Module | None:
    """Build the network of a run with the weights that it began with; None if it began from scratch.

    Raises:
        UserError: They are gone.
    """
    begun = read_run_values(folder, _KINDS)
    checkpoint, pretrained = begun.get("checkpoint"), bool(begun.get("pretrained"))
    if checkpoint is None and not pretrained:
        return None
    options = {"num_classes": spec.num_classes, "in_chans": spec.in_chans, **spec.model_kwargs}
    try:
        model: nn.Module = timm.create_model(spec.model, pretrained=pretrained, **options)
    except UserError:
        raise
    except Exception as error:  # of the hub, of the network, of the file
        raise UserError(f"the weights of {spec.model} cannot be fetched") from error
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, reset_head=True)
    return model
