"""A trained model on a device, with the transform that prepares its input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data import build_transform
from conformer_vision.inference.networks import FUSED, open_network
from conformer_vision.models.published import is_published
from conformer_vision.models.saved import ModelCard, weights_file


class TrainedModel:
    """A trained or exported model, ready for pictures: network, card, device and evaluation transform.

    ``path`` is the file that it comes from, or the name of published weights.

    Args:
        run: run folder, .safetensors file, exported file, or the name of a model of timm with published
            weights.
        device: ``auto`` or a torch device.

    Raises:
        UserError: as `open_network`.
    """

    def __init__(self, run: str | Path, *, device: str | torch.device = "auto") -> None:
        self.path = Path(run) if is_published(run) else weights_file(run)
        self.network = open_network(self.path, device=device)
        self.card = self.network.card
        self.device = self.network.device
        self.transform = eval_transform(self.card)

    def logits(self, batch: Tensor) -> dict[str, Tensor]:
        """Logits per head, each (B, K) float32: ``conv``, ``trans`` and ``fused``, or ``fused`` alone.

        Args:
            batch: (B, C, H, W) as the transform gives them.
        """
        return self.network(batch)

    def probabilities(self, batch: Tensor) -> dict[str, Tensor]:
        """Probabilities per head, each (B, K); those of ``fused`` at the card's temperature.

        Args:
            batch: as for `logits`.
        """
        heads = self.logits(batch)
        return {
            name: (logits / self.card.temperature if name == FUSED else logits).softmax(dim=1)
            for name, logits in heads.items()
        }


def eval_transform(card: ModelCard) -> Callable[[Image.Image], Tensor]:
    """Resize, centre crop and normalisation that the card asks for: RGB picture to (C, H, W)."""
    return build_transform(**card.preprocessing, augment=None)
