"""The package's own format: weights with their BatchNorms folded into the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.inference.conversion.graph import inference_form
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model


def write(
    model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision, calibration: Sequence[Tensor] = ()
) -> tuple[str, ...]:
    """Write the folded weights, stored in ``precision``; loading brings them back to float32.

    Raises:
        UserError: The model is no Conformer.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    if not all(isinstance(member, Conformer) for member in members):
        raise UserError(f"format folded is for Conformers; {spec.model} is none")
    save_model(inference_form(model, precision).model, spec, path)
    return ()
