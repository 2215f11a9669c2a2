"""The registry of export formats. Nothing here imports torch: the command line reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from conformer_vision.errors import UserError, reason_of
from conformer_vision.inference.conversion.formats import ONNX, OPENVINO
from conformer_vision.inference.conversion.formats import Format as Format
from conformer_vision.inference.conversion.formats import Precision as Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from conformer_vision.spec import ModelSpec

FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        Format("folded", f"{__package__}.folded", ".safetensors", ("fp32", "fp16", "bf16"), "weights"),
        ONNX,
        OPENVINO,
        Format("torch-export", f"{__package__}.torch_export", ".pt2", ("fp32", "fp16", "bf16"), None),
        Format("hf", f"{__package__}.hf", "", ("fp32",), "hf", folder=True),
    )
}


def find_format(name: str) -> Format:
    """Return the format of a name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in FORMATS:
        raise UserError(f"format {name!r}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def write_network(
    model: nn.Module,
    spec: ModelSpec,
    path: str | Path,
    *,
    format: str,  # noqa: A002 - the option's name
    precision: Precision = "fp32",
    calibration: Sequence[Tensor] = (),
) -> tuple[str, ...]:
    """Write a model without checking what was written; `export` does both.

    Args:
        model: Any model of timm's registry; left as it was.
        spec: The model's specification, which goes into the file.
        path: The file, with the format's suffix, or the folder; not written atomically. A format of two
            files, as OpenVINO's, writes the second beside it.
        format: A name in `FORMATS`.
        precision: Precision of the arithmetic.
        calibration: For int8: prepared images (B, C, H, W), which give the ranges of the activations.

    Returns:
        The parts of the network that int8 leaves in float.

    Raises:
        UserError: As `Format.check`, int8 without images, a model that cannot be exported, or a full disk.
    """
    entry = find_format(format)
    entry.check(precision, among=FORMATS.values())
    module = import_module(entry.module)
    spec = replace(spec, folded=False)  # the weights inside are, and need no folding to be built
    try:
        kept: tuple[str, ...] = module.write(
            model, spec, Path(path), precision=precision, calibration=calibration
        )
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason_of(error)}") from error
    return kept
