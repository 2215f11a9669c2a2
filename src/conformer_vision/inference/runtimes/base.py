"""What every runtime offers: logits of images, whatever library computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.models import Conformer
from conformer_vision.spec import ModelSpec

FUSED = "fused"
"""The head of the prediction: a Conformer's fused logits, any other network's only ones."""
HEADS = ("conv", "trans", FUSED)
INPUT = "images"
"""Name of the input of an exported file."""
OUTPUTS = {FUSED: "logits", "conv": "conv_logits", "trans": "trans_logits"}
"""Head -> name of the output of an exported file, in order. A network with one head has the first alone."""
PRECISION_KEY = "precision"
SPEC_KEY = "spec"


class Runtime(Protocol):
    """A model behind the library that computes it. Calls from several threads at once are safe."""

    spec: ModelSpec
    device: torch.device
    """Where the logits are."""
    parameters: int | None
    """Number of parameters as trained; None where the file does not say."""
    precision: str | None
    """Precision of an exported file; None for weights."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits per head, each (B, K) float32: ``fused``, a Conformer's too ``conv``, ``trans``.

        Args:
            images: (B, C, H, W) as the evaluation transform gives them.
        """


def heads(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the logits (B, K) of every head of a model, the prediction last."""
    if not isinstance(model, Conformer):
        return {FUSED: model(images)}
    branches = model.forward_branches(images)
    return {**branches._asdict(), FUSED: model.fuse_logits(branches)}


def parse_device(device: str | torch.device) -> torch.device | None:
    """Read the name of a device; None for ``auto``.

    Raises:
        UserError: Not a name that torch knows.
    """
    try:
        return None if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); 'cpu' always can"
        ) from error


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    if (wanted := parse_device(device)) is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "meta":
        raise UserError("device 'meta' computes nothing; use 'auto', 'cpu' or 'cuda'")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); 'cpu' always can"
        ) from error
    return wanted


def heads_of_outputs(names: list[str], path: Path) -> list[str]:
    """Return the heads of a file with these outputs, in the order of `HEADS`.

    Raises:
        UserError: The output of the prediction is missing.
    """
    found = [head for head in HEADS if OUTPUTS[head] in names]
    if FUSED not in found:
        raise UserError(f"{path} has no output {OUTPUTS[FUSED]!r}; export the model again")
    return found


def spec_of_file(text: str | None, path: Path) -> ModelSpec:
    """Read the specification that an exported file holds.

    Raises:
        UserError: It holds none, or one that is invalid.
    """
    if not text:
        raise UserError(f"{path} has no model spec; 'conformer-vision export' writes one into its files")
    try:
        return ModelSpec.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
