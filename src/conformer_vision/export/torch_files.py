"""PyTorch's own files: folded weights, ``torch.export`` and TorchScript."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from conformer_vision.errors import UserError
from conformer_vision.models import Conformer
from conformer_vision.spec import METADATA_KEY, ModelSpec
from conformer_vision.weights import save_model

from .formats import Precision
from .graph import build_program, example, inference_form


def write_folded(model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision) -> None:
    """Weights of the folded model, stored in ``precision``; `load_model` brings them back to float32.

    Raises:
        UserError: no Conformer.
    """
    if not isinstance(model, Conformer):
        raise UserError(f"format folded is for Conformers; {spec.model} is none")
    save_model(inference_form(model, precision).model, spec, path)  # type: ignore[arg-type]


def write_torch_export(model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision) -> None:
    """A file of ``torch.export.save``."""
    torch.export.save(build_program(model, spec, precision), path, extra_files={METADATA_KEY: spec.to_json()})


def write_torchscript(model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision) -> None:
    """A TorchScript file: scripted, or traced where a model cannot be scripted."""
    form = inference_form(model, precision)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and says so at every step
        try:
            script = torch.jit.script(form)
        except (RuntimeError, TypeError, ValueError, OSError, NotImplementedError, AttributeError):
            script = torch.jit.trace(form, example(model, spec), check_trace=False)
        whole = io.BytesIO()
        torch.jit.save(script, whole, _extra_files={METADATA_KEY: spec.to_json()})
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.namelist():
            if not entry.endswith(".debug_pkl"):  # notes that name folders of this machine
                after.writestr(entry, before.read(entry))
