"""The same Conformer twice: as this package computes it and in the plain formulation, same weights."""

from __future__ import annotations

from typing import cast

import timm
import torch

from conformer_vision.models import Conformer
from conformer_vision.models.checkpoints import load_checkpoint, to_official

from .reference import ReferenceConfig, ReferenceConformer, randomize_


def plain_config(model: Conformer) -> ReferenceConfig:
    """Dimensions of `model` for the plain formulation.

    Raises:
        ValueError: an option of `model` computes something else than the published network.
    """
    config = model.config
    if config.upsample != "nearest":
        raise ValueError(f"upsample={config.upsample!r} has no plain formulation here; use 'nearest'")
    return ReferenceConfig(
        patch_size=config.patch_size,
        channel_ratio=config.channel_ratio,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        depths=config.depths,
        stem_stride=config.stem_stride,
        stem_width=config.stem_width,
        in_chans=model.in_chans,
        num_classes=model.num_classes,
        double_class_token=config.double_class_token,
    )


def build_pair(
    name: str, *, seed: int = 0, num_classes: int = 1000, in_chans: int = 3
) -> tuple[Conformer, ReferenceConformer]:
    """Build timm's model `name` and its plain formulation, with the same random weights and statistics."""
    with torch.device("meta"):  # neither needs an initialisation
        model = cast(Conformer, timm.create_model(name, num_classes=num_classes, in_chans=in_chans))
        reference = ReferenceConformer(plain_config(model))
    randomize_(reference.to_empty(device="cpu"), seed)
    load_checkpoint(model.to_empty(device="cpu"), reference.state_dict())
    return model, reference


def plain_copy(model: Conformer) -> ReferenceConformer:
    """The plain formulation with the weights of a model that is not folded, on the CPU and in eval mode.

    Raises:
        ValueError: as `plain_config`.
    """
    with torch.device("meta"):
        reference = ReferenceConformer(plain_config(model))
    weights = {name: tensor.detach().cpu() for name, tensor in to_official(model.state_dict()).items()}
    reference.load_state_dict(weights, assign=True)
    return reference.eval()
