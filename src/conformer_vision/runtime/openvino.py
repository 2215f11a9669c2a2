"""OpenVINO models: the graph (.xml) with its weights (.bin) beside it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from conformer_vision.available import compute_threads
from conformer_vision.errors import UserError, first_line
from conformer_vision.extras import require
from conformer_vision.runs import ModelSource
from conformer_vision.spec import METADATA_KEY

from .base import INFO_KEYS, INPUT, PRECISION_KEY, ExportRuntime, Floats, export_device, unusable


class OpenVinoRuntime(ExportRuntime):
    """An OpenVINO model on the CPU.

    Args:
        source: The .xml file.
        device: ``auto`` or ``cpu``.

    Raises:
        UserError: A file that cannot be run, without a specification or without its .bin, not of `export`;
            another device; or OpenVINO is not installed.
    """

    def __init__(self, source: ModelSource, device: object) -> None:
        path = source.path
        openvino = require("openvino")
        check_device(device)
        if not path.with_suffix(".bin").is_file():
            raise UserError(f"{path.with_suffix('.bin')} does not exist; it holds the weights of {path.name}")
        try:
            core = openvino.Core()
            model = core.read_model(path)
            info = {
                key: str(model.get_rt_info([METADATA_KEY, key]).value)
                for key in INFO_KEYS
                if model.has_rt_info([METADATA_KEY, key])
            }
            settings = {
                # Left to itself OpenVINO takes bfloat16 where the processor has it.
                "INFERENCE_PRECISION_HINT": "bf16" if info.get(PRECISION_KEY) == "bf16" else "f32",
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": compute_threads(),
            }
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot run it ({first_line(error)})") from error
        outputs = [name for output in self._compiled.outputs for name in output.names]
        super().__init__(path, info=info, outputs=outputs)
        # A request owns the memory of its outputs, so that threads must not share one.
        self._requests = threading.local()

    def compute(self, images: Floats, names: list[str]) -> list[Floats]:
        """Compute the outputs of those names."""
        request: Any = getattr(self._requests, "own", None)
        if request is None:
            request = self._requests.own = self._compiled.create_infer_request()
        result = request.infer({INPUT: np.ascontiguousarray(images)})
        # Copied: the next call overwrites the request's memory.
        return [np.array(result[name], dtype=np.float32) for name in names]


def check_device(device: object) -> None:
    """Refuse another device than the CPU.

    Raises:
        UserError: It is another.
    """
    wanted = export_device(device)
    if wanted is not None and wanted[0] != "cpu":
        raise unusable(device, "OpenVINO files run on the CPU")


def has_bfloat16() -> bool:
    """Tell whether OpenVINO computes in bfloat16 on this processor.

    Raises:
        UserError: OpenVINO is not installed.
    """
    return "BF16" in require("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
