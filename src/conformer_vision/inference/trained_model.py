"""A model of any kind, opened to answer and to be evaluated; weights by PyTorch, or by a conversion."""

from __future__ import annotations

from pathlib import Path

import torch

from conformer_vision.inference.conversion.choice import RuntimeChoice, check_export
from conformer_vision.inference.conversion.computing import Computing
from conformer_vision.inference.conversion.original import Original
from conformer_vision.inference.runtimes import WeightsRuntime, open_runtime
from conformer_vision.runs import ModelSource, find_model
from conformer_vision.runtime.model import AnsweringModel, InputSize
from conformer_vision.runtime.views import Views


class TrainedModel(AnsweringModel):
    """A trained or exported model with its specification, device and evaluation transform.

    Args:
        model: As for `open_runtime`.
        device: ``auto`` or a torch device.
        input_size: Pixels of the square input, or (height, width), instead of the specification's.
        views: Looks at every image that the answers are the mean of; one by default.
        choice: What may compute it, see `prepare`; by default PyTorch alone, and of an exported file its
            own runtime.

    Raises:
        UserError: As `open_runtime` and `Computing`, or an input size or a view that the network cannot take.
    """

    def __init__(
        self,
        model: str | Path | ModelSource,
        *,
        device: str | torch.device = "auto",
        input_size: InputSize | None = None,
        views: Views | None = None,
        choice: RuntimeChoice | None = None,
    ) -> None:
        source = model if isinstance(model, ModelSource) else find_model(model)
        converted = choice is not None and choice.is_asked_for and not source.exported
        opened = open_runtime(source, device="cpu" if converted else device)
        super().__init__(source.path, opened, input_size=input_size, views=views)
        self.explainable = not source.exported and self.spec.members == 1
        self._computing: Computing | None = None
        if choice is not None and isinstance(opened, WeightsRuntime):
            height, width = self.spec.input_size[1:]
            edges = tuple(view.edges(height, width) for view in self.views)
            original = Original(source, opened, self.spec, edges)
            self._computing = Computing(original, choice, device=device)
        elif choice is not None:
            check_export(choice, source, precision=opened.precision)

    def prepare(self, images: int | None, *, batch_size: int) -> None:
        """Let the fastest exact runtime compute, if it pays for so many images, or the one asked for.

        Args:
            images: How many will be computed; None where that is not known.
            batch_size: Images per forward pass.

        Raises:
            UserError: The runtime that is asked for cannot compute the model.
        """
        if self._computing is not None:
            self.runtime = self._computing.runtime_for(images, batch_size=batch_size)
