"""What computes a model of any kind: PyTorch for weights, onnxruntime and OpenVINO for exported files."""

from __future__ import annotations

from pathlib import Path

import torch

from conformer_vision.runs import ModelSource, find_model
from conformer_vision.runtime.base import Runtime
from conformer_vision.runtime.opening import open_export

from .weights import WeightsRuntime

__all__ = ["WeightsRuntime", "open_runtime"]


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
    return open_export(source, device=device) if source.exported else WeightsRuntime(source, device)
