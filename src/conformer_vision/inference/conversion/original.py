"""What is converted."""

from __future__ import annotations

from dataclasses import dataclass

from conformer_vision.inference.runtimes import WeightsRuntime
from conformer_vision.runs import ModelSource
from conformer_vision.spec import ModelSpec

Edges = tuple[int, int]


@dataclass(frozen=True)
class Original:
    """A model in PyTorch, and what it is given."""

    source: ModelSource
    runtime: WeightsRuntime
    spec: ModelSpec
    """At the input size that was asked for."""
    views: tuple[Edges, ...]
    """Height and width of every view of an image."""
