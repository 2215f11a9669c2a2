"""What every runtime offers: logits of images as NumPy arrays, whatever library computes them.

Shapes: B images, K classes, F pooled features.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conformer_vision.available import check_linear
from conformer_vision.class_means import ClassMeans
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec

Array = NDArray[Any]
Floats = NDArray[np.float32]

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
MEMORY_KEY = "memory_per_image"
"""Key of the bytes that computing one image of the specification's size takes."""
INFO_KEYS = (SPEC_KEY, PRECISION_KEY, MEMORY_KEY)


class Outputs(NamedTuple):
    """What a model gives for a batch of images."""

    logits: dict[str, Floats]
    """Head -> (B, K)."""
    features: Floats | None
    """(B, F): the pooled features; None for an export and an ensemble, which do not give them."""


class Runtime(ABC):
    """A model behind the library that computes it. Calls from several threads at once are safe."""

    spec: ModelSpec
    device: str
    """Where the network computes: ``cpu``, ``cuda:0``, …"""
    precision: str = "fp32"
    """Of the arithmetic."""
    parameters: int | None = None
    """Number of parameters as trained; None where the file does not say."""
    class_means: ClassMeans | None = None
    """Of the pooled features, where the file holds them."""

    @abstractmethod
    def outputs(self, images: Floats) -> Outputs:
        """Compute the logits of every head, and the pooled features where the model gives them.

        The heads are ``fused``, and a Conformer's ``conv`` and ``trans``.

        Args:
            images: (B, C, H, W) as the evaluation transform gives them.
        """

    def __call__(self, images: Floats) -> dict[str, Floats]:
        """Compute the logits per head, each (B, K)."""
        return self.outputs(images).logits

    @abstractmethod
    def check_batch(self, shape: tuple[int, ...], *, batches: int) -> None:
        """Check that main memory holds the computation of images (B, C, H, W), on the CPU.

        Args:
            shape: B, C, H, W.
            batches: Number of batches of images that are held at a time.

        Raises:
            UserError: It does not; the line says how many would fit.
        """

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the CPU."""
        return self.device.partition(":")[0] == "cpu"


class ExportRuntime(Runtime):
    """An exported file, run by a library other than PyTorch."""

    device = "cpu"

    def __init__(self, path: Path, *, info: Mapping[str, str | None], outputs: list[str]) -> None:
        """Take what the file says of itself.

        Args:
            path: The file.
            info: What it says, by the `INFO_KEYS`.
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
        self.heads = [head for head in HEADS if OUTPUTS[head] in outputs]
        if FUSED not in self.heads:
            raise UserError(f"{path} has no output {OUTPUTS[FUSED]!r}; export the model again")
        self.precision = info.get(PRECISION_KEY) or "fp32"
        memory = info.get(MEMORY_KEY) or ""
        self._memory_per_image = int(memory) if memory.isascii() and memory.isdigit() else 0
        self._names = [*(OUTPUTS[head] for head in self.heads), *([FEATURES] if FEATURES in outputs else [])]

    @abstractmethod
    def compute(self, images: Floats, names: list[str]) -> list[Floats]:
        """Compute the outputs of those names, in memory of their own."""

    def outputs(self, images: Floats) -> Outputs:
        """Compute the logits, and the pooled features where the file gives them."""
        found = dict(zip(self._names, self.compute(images, self._names), strict=True))
        return Outputs({head: found[OUTPUTS[head]] for head in self.heads}, found.get(FEATURES))

    def check_batch(self, shape: tuple[int, ...], *, batches: int) -> None:
        """Check that main memory holds it, as far as the file says what an image takes."""
        if not self._memory_per_image:
            return
        height, width = self.spec.input_size[1:]
        pixels = shape[2] * shape[3] / (height * width)
        check_linear(self._memory_per_image * pixels, shape, batches=batches)


def export_device(device: object) -> tuple[str, int] | None:
    """Read the name of a device for an exported file; None for ``auto``.

    Raises:
        UserError: It is neither ``cpu`` nor ``cuda``.
    """
    if device == "auto":
        return None
    match = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", str(device))
    if match is None:
        raise unusable(device, "exported files run on cpu or cuda")
    return match[1], int(match[2] or 0)


def unusable(device: object, reason: str) -> UserError:
    """Return the error for a device that cannot be used here."""
    return UserError(f"device {str(device)!r} cannot be used here ({reason}); 'cpu' always can")
