"""The transform for evaluation as PyTorch takes it: to tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.preprocessing import Pipeline, array_pipeline
from conformer_vision.spec import ModelSpec, Preprocessing

Transform = Callable[[Image.Image], Tensor]


def evaluation_transform(spec: ModelSpec) -> Pipeline[Tensor]:
    """Build the resizing, cropping and normalisation that a specification asks for.

    Returns:
        A function from an RGB image of any size to a float tensor (C, H, W). One channel makes it grey.

    Raises:
        UserError: The specification has neither one nor three channels.
    """
    return evaluation_pipeline(spec.preprocessing)


def evaluation_pipeline(preprocessing: Preprocessing) -> Pipeline[Tensor]:
    """Build the transform of `evaluation_transform` from its values."""
    return array_pipeline(preprocessing).then(torch.from_numpy)
