"""A trained model on a device, with the transform that prepares its input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.runtimes import FUSED, Runtime, open_runtime
from conformer_vision.inference.runtimes.base import heads
from conformer_vision.memory import check_batch
from conformer_vision.preprocessing import evaluation_transform
from conformer_vision.runs import ModelSource, find_model
from conformer_vision.spec import ModelSpec

InputSize = int | tuple[int, int]


class TrainedModel:
    """A trained or exported model with its specification, device and evaluation transform.

    ``path`` is the file that it comes from, or the name of published weights.

    Args:
        model: As for `open_runtime`.
        device: ``auto`` or a torch device.
        input_size: Pixels of the square input, or (height, width), instead of the specification's.

    Raises:
        UserError: As `open_runtime`, or an input size that the network cannot take.
    """

    def __init__(
        self,
        model: str | Path | ModelSource,
        *,
        device: str | torch.device = "auto",
        input_size: InputSize | None = None,
    ) -> None:
        source = model if isinstance(model, ModelSource) else find_model(model)
        self.path = source.path
        self.runtime = open_runtime(source, device=device)
        self.spec = self.runtime.spec
        if input_size is not None:
            self.spec = _resized(self.spec, input_size, self.runtime)
        self.device = self.runtime.device
        self.transform = evaluation_transform(self.spec)

    def check_batch(self, images: int, *, read_ahead: int = 0) -> None:
        """Check that main memory holds so many images at once, and batches that are read ahead.

        Raises:
            UserError: It does not.
        """
        if images and self.device.type == "cpu":
            shape = (images, *self.spec.input_size)
            check_batch(self.runtime.network, _compute, shape, batches=2 + read_ahead)

    def probabilities(self, batch: Tensor) -> dict[str, Tensor]:
        """Compute the probabilities per head, each (B, K); those of ``fused`` at the model's temperature.

        Args:
            batch: (B, C, H, W) as the transform gives them.
        """
        return {
            head: (logits / self.spec.temperature if head == FUSED else logits).softmax(dim=1)
            for head, logits in self.runtime(batch).items()
        }


def _compute(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        heads(model, images)


def _resized(spec: ModelSpec, input_size: InputSize, runtime: Runtime) -> ModelSpec:
    """Return the specification with another input size, after trying it with a black image."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    resized = replace(spec, input_size=(spec.in_chans, height, width))
    try:
        runtime(torch.zeros(1, *resized.input_size))
    except Exception as error:  # every runtime has kinds of its own
        own = "x".join(map(str, spec.input_size[1:]))
        raise UserError(
            f"input_size {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own}"
        ) from error
    return resized
