"""The runtimes of exported files: a file and a line each."""

from __future__ import annotations

from collections.abc import Callable

from conformer_vision.runs import Kind, ModelSource

from .base import ExportRuntime
from .onnx import OnnxRuntime
from .openvino import OpenVinoRuntime

EXPORTS: dict[Kind, Callable[[ModelSource, object], ExportRuntime]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVinoRuntime,
}


def open_export(source: ModelSource, *, device: object = "auto") -> ExportRuntime:
    """Open an exported file for inference, in the runtime that its kind needs.

    Args:
        source: The file.
        device: ``auto`` (CUDA where the runtime has it), ``cpu`` or ``cuda``.

    Raises:
        UserError: A damaged file, no specification in it, a missing library (the line gives the pip command),
            or a device that cannot be used.
    """
    return EXPORTS[source.kind](source, device)
