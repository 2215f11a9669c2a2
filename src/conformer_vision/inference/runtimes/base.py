"""What every runtime offers: logits of images, whatever library computes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError, first_line
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.models.ensemble import mean_of
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import build_empty

FUSED = "fused"
"""The head of the prediction: a Conformer's fused logits, any other network's only ones."""
HEADS = ("conv", "trans", FUSED)
INPUT = "images"
"""Name of the input of an exported file."""
OUTPUTS = {FUSED: "logits", "conv": "conv_logits", "trans": "trans_logits"}
"""Head -> name of the output of an exported file, in order. A network with one head has the first alone."""
FEATURES = "features"
"""Name of the output of the pooled features, which a conversion has and an export has not."""
PRECISION_KEY = "precision"
SPEC_KEY = "spec"


class Outputs(NamedTuple):
    """What a model gives for a batch of images."""

    logits: dict[str, Tensor]
    """Head -> (B, K) float32."""
    features: Tensor | None
    """(B, F) float32: the pooled features; None for an export and an ensemble, which do not give them."""


class Runtime(ABC):
    """A model behind the library that computes it. Calls from several threads at once are safe."""

    spec: ModelSpec
    device: torch.device
    """Where the logits are."""
    precision: str = "fp32"
    """Of the arithmetic."""
    parameters: int | None = None
    """Number of parameters as trained; None where the file does not say."""
    class_means: ClassMeans | None = None
    """Of the pooled features, where the file holds them."""

    @abstractmethod
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits per head, each (B, K) float32: ``fused``, a Conformer's too ``conv``, ``trans``.

        Args:
            images: (B, C, H, W) as the evaluation transform gives them.
        """

    def outputs(self, images: Tensor) -> Outputs:
        """Compute the logits, and the pooled features where the model gives them."""
        return Outputs(self(images), None)

    def network(self) -> nn.Module:
        """Return the network that is computed, as a model of timm, to look at."""
        return build_empty(self.spec)


class ExportRuntime(Runtime):
    """An exported file, run by a library other than PyTorch, which brings the logits to the CPU."""

    def __init__(self, path: Path, *, info: Mapping[str, str | None], outputs: list[str]) -> None:
        """Take what the file says of itself.

        Args:
            path: The file.
            info: Its specification as JSON, and its precision, by `SPEC_KEY` and `PRECISION_KEY`.
            outputs: The names of its outputs.

        Raises:
            UserError: No specification or an invalid one, or no output of the prediction.
        """
        spec = info.get(SPEC_KEY)
        if not spec:
            raise UserError(f"{path} has no model spec; 'conformer-vision export' writes one into its files")
        try:
            self.spec = ModelSpec.from_json(spec)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        self.device = torch.device("cpu")
        self.heads = [head for head in HEADS if OUTPUTS[head] in outputs]
        if FUSED not in self.heads:
            raise UserError(f"{path} has no output {OUTPUTS[FUSED]!r}; export the model again")
        self.precision = info.get(PRECISION_KEY) or "fp32"
        self._names = [*(OUTPUTS[head] for head in self.heads), *([FEATURES] if FEATURES in outputs else [])]

    @abstractmethod
    def compute(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """Compute the outputs of those names, float32 in memory of their own."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the logits per head."""
        return self.outputs(images).logits

    def outputs(self, images: Tensor) -> Outputs:
        """Compute the logits, and the pooled features where the file gives them."""
        found = dict(zip(self._names, self.compute(images, self._names), strict=True))
        return Outputs({head: found[OUTPUTS[head]] for head in self.heads}, found.get(FEATURES))


def heads(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Compute the logits (B, K) of every head of a model, the prediction last."""
    if isinstance(model, Ensemble):
        parts = [heads(member, images) for member in model.members]
        return {head: mean_of([part[head] for part in parts]) for head in parts[0]}
    if not isinstance(model, Conformer):
        return {FUSED: model(images)}
    branches = model.forward_branches(images)
    return {**branches._asdict(), FUSED: model.fuse_logits(branches)}


def heads_and_features(model: nn.Module, images: Tensor) -> Outputs:
    """Compute the logits of every head of a model of timm, the prediction last, and its pooled features."""
    if isinstance(model, Ensemble):
        return Outputs(heads(model, images), None)  # each member has features of its own
    whole: Any = model
    features = whole.forward_features(images)
    pooled = whole.forward_head(features, pre_logits=True)
    if not isinstance(model, Conformer):
        return Outputs({FUSED: whole.forward_head(features)}, pooled if pooled.ndim == 2 else None)
    branches = model.branch_logits(features)
    return Outputs({**branches._asdict(), FUSED: model.fuse_logits(branches)}, pooled)


def parse_device(device: str | torch.device) -> torch.device | None:
    """Read the name of a device; None for ``auto``.

    Raises:
        UserError: Not a name that torch knows.
    """
    try:
        return None if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise unusable(device, "PyTorch knows no such device") from error


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name; ``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: This machine has no such device.
    """
    wanted = parse_device(device) or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.type == "meta":
        raise unusable(device, "it computes nothing")
    try:
        torch.empty(0, device=wanted)
    except NotImplementedError as error:  # torch lists all that it was built with
        raise unusable(device, "this PyTorch was built without it") from error
    except (ImportError, RuntimeError, AssertionError) as error:
        raise unusable(device, first_line(error).partition(". ")[0]) from error
    return wanted


def unusable(device: str | torch.device, reason: str) -> UserError:
    """Return the error for a device that cannot be used here."""
    return UserError(f"device {str(device)!r} cannot be used here ({reason}); 'cpu' always can")
