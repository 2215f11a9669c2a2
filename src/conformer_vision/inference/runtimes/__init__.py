"""The runtimes: PyTorch for weights, onnxruntime and OpenVINO for exported files; a file and a line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from conformer_vision.runs import Kind, ModelSource, find_model

from .base import FUSED, Outputs, Runtime
from .onnx import OnnxRuntime
from .openvino import OpenVinoRuntime
from .weights import WeightsRuntime

__all__ = ["FUSED", "Outputs", "Runtime", "WeightsRuntime", "open_runtime"]

_RUNTIMES: dict[Kind, Callable[[ModelSource, str | torch.device], Runtime]] = {
    "weights": WeightsRuntime,
    "checkpoint": WeightsRuntime,
    "hf": WeightsRuntime,
    "published": WeightsRuntime,
    "onnx": OnnxRuntime,
    "openvino": OpenVinoRuntime,
}


def open_runtime(model: str | Path | ModelSource, *, device: str | torch.device = "auto") -> Runtime:
    """Open a trained model for inference, in the runtime that its kind of file needs.

    Args:
        model: A run folder, weights, checkpoint, ONNX or OpenVINO file, folder of the Hugging Face Hub, or
            the name of published weights.
        device: ``auto`` (CUDA where there is one and the runtime can use it), or a torch device.

    Raises:
        UserError: No such model, a damaged file, no specification in it, a missing library (the line gives
            the pip command), or a device that cannot be used.
    """
    source = model if isinstance(model, ModelSource) else find_model(model)
    return _RUNTIMES[source.kind](source, device)
