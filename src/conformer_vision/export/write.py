"""Writing a model in one of the formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from conformer_vision.spec import ModelSpec

from .formats import Format, Precision, check_supported


def write_network(
    model: nn.Module,
    spec: ModelSpec,
    path: str | Path,
    *,
    format: Format,  # noqa: A002 - the option's name
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> tuple[str, ...]:
    """Writes a model, without checking what was written; `export` does both.

    A format of two files, as OpenVINO's, gets the second beside ``path``.

    Args:
        model: any of timm's registry; left as it was.
        spec: of the model; goes into the file.
        path: with the format's suffix; not written in one step.
        format: of the file.
        precision: of its arithmetic.
        calibration: for int8: prepared images (B, C, H, W), from which the ranges of activations come.

    Returns:
        The parts of the network that int8 leaves in float.

    Raises:
        UserError: as `check_supported`, int8 without images, a model that cannot be exported, or a file
            that cannot be written.
    """
    check_supported(format, precision)
    path = Path(path)
    spec = replace(spec, folded=False)
    if format == "folded":
        from .torch_files import write_folded

        write_folded(model, spec, path, precision=precision)
    elif format == "torch-export":
        from .torch_files import write_torch_export

        write_torch_export(model, spec, path, precision=precision)
    elif format == "torchscript":
        from .torch_files import write_torchscript

        write_torchscript(model, spec, path, precision=precision)
    elif format == "onnx":
        from .onnx_file import write_onnx

        return write_onnx(model, spec, path, precision=precision, calibration=calibration)
    else:
        from .openvino_file import write_openvino

        return write_openvino(model, spec, path, precision=precision, calibration=calibration)
    return ()
