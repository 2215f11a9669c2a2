"""OpenVINO's two files: the graph (.xml) and its weights (.bin)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.runtime.base import MEMORY_KEY, PRECISION_KEY, SPEC_KEY
from conformer_vision.spec import METADATA_KEY, ModelSpec

from .formats import Precision
from .onnx import build_onnx


def write(
    model: nn.Module,
    spec: ModelSpec,
    path: Path,
    *,
    precision: Precision,
    calibration: Sequence[Tensor] = (),
    features: bool = False,
) -> tuple[str, ...]:
    """Write the .xml and the .bin beside it; the graph's rt_info holds the specification and the precision.

    fp16 is how the weights are stored; bf16 is how OpenVINO is asked to compute. With ``features`` it gives
    the pooled features too, where the model has any.

    Raises:
        UserError: As `build_onnx`, or files that cannot be written.
    """
    import openvino

    # fp16 and bf16 start from float32 weights, which OpenVINO converts.
    source, kept = build_onnx(
        model,
        spec,
        precision="int8" if precision == "int8" else "fp32",
        calibration=calibration,
        signed=True,
        features=features,
    )
    info = {entry.key: entry.value for entry in source.metadata_props}
    try:
        graph = openvino.Core().read_model(source.SerializeToString())
        graph.set_rt_info(spec.to_json(), [METADATA_KEY, SPEC_KEY])
        graph.set_rt_info(precision, [METADATA_KEY, PRECISION_KEY])
        graph.set_rt_info(info[MEMORY_KEY], [METADATA_KEY, MEMORY_KEY])
        openvino.save_model(graph, path, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"cannot write {path}: OpenVINO says {reason!r}; is there room on the disk?"
        ) from error
    return kept
