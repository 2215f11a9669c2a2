"""ONNX files, run by onnxruntime."""

from __future__ import annotations

import torch
from torch import Tensor

from conformer_vision.errors import UserError, first_line
from conformer_vision.extras import require
from conformer_vision.inference.runtimes.base import (
    INPUT,
    PRECISION_KEY,
    SPEC_KEY,
    ExportRuntime,
    parse_device,
    unusable,
)
from conformer_vision.runs import ModelSource
from conformer_vision.spec import METADATA_KEY


class OnnxRuntime(ExportRuntime):
    """An ONNX file on the CPU, or on CUDA with onnxruntime-gpu; its sessions may be shared by threads.

    Args:
        source: The .onnx file.
        device: ``auto`` (CUDA where onnxruntime has it), ``cpu`` or ``cuda``.

    Raises:
        UserError: A file that cannot be run, without a specification, or not of `export`; another device; or
            onnxruntime is not installed.
    """

    def __init__(self, source: ModelSource, device: str | torch.device) -> None:
        path = source.path
        onnxruntime, providers = require("onnxruntime"), find_providers(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime has a dozen kinds of its own
            raise UserError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error
        outputs = [output.name for output in self._session.get_outputs()]
        info = {SPEC_KEY: metadata.get(METADATA_KEY), PRECISION_KEY: metadata.get(PRECISION_KEY)}
        super().__init__(path, info=info, outputs=outputs)
        if [item.name for item in self._session.get_inputs()] != [INPUT]:
            raise UserError(f"{path} does not have the one input {INPUT!r}; export the model again")

    def compute(self, images: Tensor, names: list[str]) -> list[Tensor]:
        """Compute the outputs of those names."""
        return [
            torch.from_numpy(output) for output in self._session.run(names, {INPUT: images.cpu().numpy()})
        ]


def find_providers(device: str | torch.device) -> list[object]:
    """Return what computes on a device in onnxruntime, the first choice first.

    Raises:
        UserError: onnxruntime is not installed, or has not that device.
    """
    cuda = "CUDAExecutionProvider" in require("onnxruntime").get_available_providers()
    wanted = parse_device(device) or torch.device("cuda" if cuda else "cpu")
    if wanted.type not in ("cpu", "cuda") or (wanted.type == "cuda" and not cuda):
        raise unusable(device, f"this onnxruntime has the CPU{' and CUDA' * cuda}")
    if wanted.type == "cpu":
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": wanted.index or 0}), "CPUExecutionProvider"]
