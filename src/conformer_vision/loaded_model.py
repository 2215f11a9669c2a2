"""What `load` returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from conformer_vision import notebook
from conformer_vision.errors import some_names
from conformer_vision.spec import ModelSpec
from conformer_vision.tensors import Transform


class LoadedModel(NamedTuple):
    """A model ready for use."""

    model: nn.Module
    """On the CPU, in eval mode."""
    spec: ModelSpec
    transform: Transform
    """From an RGB image to the model's input (C, H, W)."""

    def _repr_html_(self) -> str:
        """Show the specification in a notebook, and not all layers."""
        spec = self.spec
        channels, height, width = spec.input_size
        parameters = sum(each.numel() for each in self.model.parameters())
        rows = [
            ("classes", f"{spec.num_classes:,}: {some_names(spec.labels)}"),
            ("an image has", "any number of them" if spec.multilabel else "one of them"),
            ("parameters", f"{parameters:,}"),
            ("input", f"{width} × {height} pixels of {channels} channels"),
            ("temperature", f"{spec.temperature:.3g}"),
            ("says which answers are unsure", "no" if spec.thresholds is None else "yes"),
            ("version", spec.version or "-"),
        ]
        return notebook.block(notebook.title(spec.model), notebook.table(("", ""), rows))
