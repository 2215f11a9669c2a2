"""ONNX files, run by onnxruntime."""

from __future__ import annotations

import numpy as np

from conformer_vision.available import compute_threads
from conformer_vision.errors import UserError, first_line
from conformer_vision.extras import require
from conformer_vision.runs import ModelSource
from conformer_vision.spec import METADATA_KEY

from .base import INFO_KEYS, INPUT, SPEC_KEY, ExportRuntime, Floats, export_device, unusable


class OnnxRuntime(ExportRuntime):
    """An ONNX file on the CPU, or on CUDA with onnxruntime-gpu; its sessions may be shared by threads.

    Args:
        source: The .onnx file.
        device: ``auto`` (CUDA where onnxruntime has it), ``cpu`` or ``cuda``.

    Raises:
        UserError: A file that cannot be run, without a specification, or not of `export`; another device; or
            onnxruntime is not installed.
    """

    def __init__(self, source: ModelSource, device: object) -> None:
        path = source.path
        onnxruntime, providers = require("onnxruntime"), find_providers(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = compute_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime has a dozen kinds of its own
            raise UserError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error
        outputs = [output.name for output in self._session.get_outputs()]
        info = {key: metadata.get(METADATA_KEY if key == SPEC_KEY else key) for key in INFO_KEYS}
        super().__init__(path, info=info, outputs=outputs)
        if [item.name for item in self._session.get_inputs()] != [INPUT]:
            raise UserError(f"{path} does not have the one input {INPUT!r}; export the model again")

    def compute(self, images: Floats, names: list[str]) -> list[Floats]:
        """Compute the outputs of those names."""
        outputs: list[Floats] = self._session.run(names, {INPUT: np.ascontiguousarray(images)})
        return outputs


def find_providers(device: object) -> list[object]:
    """Return what computes on a device in onnxruntime, the first choice first.

    Raises:
        UserError: onnxruntime is not installed, or has not that device.
    """
    cuda = "CUDAExecutionProvider" in require("onnxruntime").get_available_providers()
    kind, index = export_device(device) or ("cuda" if cuda else "cpu", 0)
    if kind == "cpu":
        return ["CPUExecutionProvider"]
    if not cuda:
        raise unusable(device, "this onnxruntime has the CPU alone")
    return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
