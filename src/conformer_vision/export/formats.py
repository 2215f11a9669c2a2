"""The formats and precisions that there are. Nothing here imports torch: the command line reads this file."""

from __future__ import annotations

from typing import Literal, get_args

from conformer_vision.errors import UserError
from conformer_vision.extras import check_installed

Format = Literal["folded", "onnx", "openvino", "torch-export", "torchscript"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

_SUFFIXES: dict[Format, str] = {
    "folded": ".safetensors",
    "onnx": ".onnx",
    "openvino": ".xml",
    "torch-export": ".pt2",
    "torchscript": ".torchscript",
}
_PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "folded": ("fp32", "fp16", "bf16"),
    "onnx": ("fp32", "fp16", "int8"),  # onnxruntime has no bfloat16 convolution
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "torch-export": ("fp32", "fp16", "bf16"),
    "torchscript": ("fp32", "fp16", "bf16"),
}
_LIBRARIES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


def suffix(format: Format) -> str:  # noqa: A002 - the option's name
    """Suffix of the files of a format, with its dot."""
    return _SUFFIXES[format]


def check_supported(format: Format, precision: Precision) -> None:  # noqa: A002
    """Refuses what cannot be written here.

    Args:
        format: of the file.
        precision: of its arithmetic; of the stored weights alone for ``folded``.

    Raises:
        UserError: an unknown format or precision, a combination that there is not, or a library of the extra
            ``export`` that is not installed.
    """
    if format not in _SUFFIXES:
        raise UserError(f"format {format!r}: must be one of {', '.join(_SUFFIXES)}")
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r}: must be one of {', '.join(get_args(Precision))}")
    if precision not in _PRECISIONS[format]:
        others = ", ".join(name for name, known in _PRECISIONS.items() if precision in known)
        raise UserError(
            f"precision {precision}: the format {format} has {', '.join(_PRECISIONS[format])};"
            f" {precision} is in {others}"
        )
    check_installed(*_LIBRARIES.get(format, ()))
