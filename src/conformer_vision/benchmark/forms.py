"""The forms of a model: in PyTorch as trained, and every export that a runtime of ours reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line, nearest
from conformer_vision.export import FORMATS, Precision, write_network
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.runs import ModelSource
from conformer_vision.runtime.base import FUSED
from conformer_vision.spec import ModelSpec

EAGER = "eager"


@dataclass(frozen=True)
class Form:
    """One way to run a model.

    Args:
        format: ``eager``, the model as trained, or a name in `FORMATS`.
        precision: Precision of the arithmetic; of ``folded`` that of the stored weights alone.
    """

    format: str
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        """``onnx`` or ``onnx-int8``."""
        return self.format if self.precision == "fp32" else f"{self.format}-{self.precision}"


FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(EAGER),
        *(
            Form(entry.name, precision)
            for entry in FORMATS.values()
            if entry.runtime is not None and not entry.folder  # which holds the weights as trained
            for precision in entry.precisions
        ),
    )
}
"""Name -> form, in the order of the tables."""


def find_form(name: str) -> Form:
    """Return the form of a name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in FORMS:
        raise UserError(f"forms {name}: must be one of {', '.join(FORMS)}{nearest(name, FORMS)}")
    return FORMS[name]


@dataclass(frozen=True)
class OpenForm:
    """A form that is ready to be called."""

    form: Form
    call: Callable[[Tensor], Tensor]
    """Images (B, C, H, W) to logits (B, K), float32 on the CPU; when it returns the work is done."""
    file_mb: float
    """Size on disk in MB of 1e6 bytes; of ``eager`` that of its parameters and buffers."""


def open_form(
    form: Form, model: nn.Module, spec: ModelSpec, folder: Path, *, images: Tensor, device: torch.device
) -> OpenForm:
    """Write a form, open it as `predict` does, and call it once.

    Args:
        form: The form to open.
        model: The model as trained, in eval mode and on the device.
        spec: The model's specification.
        folder: Receives the files.
        images: (N, C, H, W), which int8 is calibrated on.
        device: Device of the form.

    Raises:
        UserError: This model has no such form, a library is missing, or the form does not run on the device.
    """
    opened = (
        _eager(model, spec, device)
        if form.format == EAGER
        else _exported(form, model, spec, folder, images=images, device=device)
    )
    try:
        opened.call(images[:1])
    except Exception as error:  # every runtime raises errors of its own
        raise UserError(f"cannot run ({first_line(error)})") from error
    return opened


def _eager(model: nn.Module, spec: ModelSpec, device: torch.device) -> OpenForm:
    if spec.folded:
        raise UserError("these weights are folded; give those that training wrote")

    @torch.inference_mode()
    def call(images: Tensor) -> Tensor:
        logits: Tensor = model(images.to(device))
        return logits.float().cpu()

    size = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return OpenForm(Form(EAGER), call, size / 1e6)


def _exported(
    form: Form, model: nn.Module, spec: ModelSpec, folder: Path, *, images: Tensor, device: torch.device
) -> OpenForm:
    entry = FORMATS[form.format]
    path = folder / f"{form.name}{entry.suffix}"
    calibration = images.split(8) if form.precision == "int8" else ()
    write_network(model, spec, path, format=entry.name, precision=form.precision, calibration=calibration)
    assert entry.runtime is not None  # FORMS has no others
    runtime = open_runtime(ModelSource(entry.runtime, path), device=device)
    size = sum(file.stat().st_size for file in entry.files(path))
    return OpenForm(form, lambda images: torch.from_numpy(runtime(images.numpy())[FUSED]), size / 1e6)
