"""OpenVINO's two files: the graph (.xml) and its weights (.bin)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.inference.networks import PRECISION_KEY
from conformer_vision.spec import METADATA_KEY, ModelSpec

from .formats import Precision
from .onnx_file import build_onnx


def write_openvino(
    model: nn.Module, spec: ModelSpec, path: Path, *, precision: Precision, calibration: Sequence[Tensor] = ()
) -> tuple[str, ...]:
    """The .xml at ``path`` and the .bin beside it; spec and precision are in the graph's rt_info.

    fp16 is how the weights are stored; bf16 is how `open_network` asks OpenVINO to compute.

    Args:
        model: any of timm's registry.
        spec: goes into the file.
        path: of the .xml.
        precision: of the file.
        calibration: for int8: prepared images (B, C, H, W).

    Returns:
        The parts that int8 leaves in float.

    Raises:
        UserError: as `write_onnx`, or files that cannot be written.
    """
    import openvino

    # fp16 and bf16 begin with float32 weights: OpenVINO converts them.
    source, kept = build_onnx(
        model,
        spec,
        precision="int8" if precision == "int8" else "fp32",
        calibration=calibration,
        signed=True,
    )
    try:
        graph = openvino.Core().read_model(source.SerializeToString())
        graph.set_rt_info(spec.to_json(), [METADATA_KEY, "spec"])
        graph.set_rt_info(precision, [METADATA_KEY, PRECISION_KEY])
        openvino.save_model(graph, path, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        raise UserError(
            f"cannot write {path}: OpenVINO refuses {spec.model} ({str(error).strip().splitlines()[-1]})"
        ) from error
    return kept
