"""A trained model on a device, with the transform that prepares its input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.networks import FUSED, Network, open_network
from conformer_vision.preprocessing import evaluation_transform
from conformer_vision.runs import find_model
from conformer_vision.spec import ModelSpec

InputSize = int | tuple[int, int]


class TrainedModel:
    """A trained or exported model, ready for images: network, spec, device and evaluation transform.

    ``path`` is the file that it comes from, or the name of published weights.

    Args:
        run: run folder, .safetensors file, exported file, or the name of a model of timm with published
            weights.
        device: ``auto`` or a torch device.
        input_size: pixels of the square input, or (height, width), in place of the spec's.

    Raises:
        UserError: as `open_network`; an input size that the network cannot take.
    """

    def __init__(
        self, run: str | Path, *, device: str | torch.device = "auto", input_size: InputSize | None = None
    ) -> None:
        self.path = find_model(run).path
        self.network = open_network(self.path, device=device)
        self.spec = self.network.spec
        if input_size is not None:
            self.spec = _resized(self.spec, input_size, self.network)
        self.device = self.network.device
        self.transform = evaluation_transform(self.spec)

    def logits(self, batch: Tensor) -> dict[str, Tensor]:
        """Logits per head, each (B, K) float32: ``conv``, ``trans`` and ``fused``, or ``fused`` alone.

        Args:
            batch: (B, C, H, W) as the transform gives them.
        """
        return self.network(batch)

    def probabilities(self, batch: Tensor) -> dict[str, Tensor]:
        """Probabilities per head, each (B, K); those of ``fused`` at the spec's temperature.

        Args:
            batch: as for `logits`.
        """
        heads = self.logits(batch)
        return {
            name: (logits / self.spec.temperature if name == FUSED else logits).softmax(dim=1)
            for name, logits in heads.items()
        }


def _resized(spec: ModelSpec, input_size: InputSize, network: Network) -> ModelSpec:
    """The spec with another input size, once a black image of that size has gone through the network."""
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if min(height, width) < 1:
        raise UserError(f"input_size {height}x{width}: must be 1 pixel or more")
    resized = replace(spec, input_size=(spec.in_chans, height, width))
    try:
        network(torch.zeros(1, *resized.input_size))
    except Exception as error:  # every library that runs networks has kinds of its own
        own = "x".join(map(str, spec.input_size[1:]))
        raise UserError(
            f"input_size {height}x{width}: {spec.model} cannot take it ({first_line(error)}); "
            f"its own size is {own}"
        ) from error
    return resized
