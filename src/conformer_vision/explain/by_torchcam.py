"""The gradient and score methods of torchcam, on the last feature map and the fused logit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.explain.base import Activation
from conformer_vision.explain.networks import cam_module, map_cells
from conformer_vision.extras import require


def by_torchcam(name: str) -> Callable[[nn.Module, Tensor, Tensor, Sequence[int] | None], Activation]:
    """Return the method that torchcam has under a class name, such as ``GradCAM``."""

    def method(model: nn.Module, images: Tensor, classes: Tensor, blocks: Sequence[int] | None) -> Activation:
        kind = getattr(require("torchcam.methods"), name)
        with torch.enable_grad():
            images = images.clone().requires_grad_()
            target = cam_module(model, images)
            try:
                extractor = kind(model, target, input_shape=tuple(images.shape[1:]))
            except ValueError as error:
                raise UserError(f"{type(model).__name__} has no feature map that torchcam finds") from error
            with extractor:
                logits = model(images)
                maps = []
                for column in classes.unbind(1):
                    options = {"scores": logits, "normalized": False, "retain_graph": True}
                    (found,) = extractor(column.tolist(), **options)
                    maps.append(found.detach())
        activation = torch.stack(maps, 1)
        return Activation(activation, map_cells(activation, images), logits.detach().gather(1, classes))

    return method
