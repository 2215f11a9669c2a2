"""ONNX files."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.runtime.base import FEATURES, INPUT, MEMORY_KEY, OUTPUTS, PRECISION_KEY
from conformer_vision.spec import METADATA_KEY, ModelSpec

from .formats import Precision
from .graph import build_program, memory_per_image, quiet
from .quantize import quantize

_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_AXES = ("batch", "channels", "height", "width")


def write(
    model: nn.Module,
    spec: ModelSpec,
    path: Path,
    *,
    precision: Precision,
    calibration: Sequence[Tensor] = (),
    features: bool = False,
) -> tuple[str, ...]:
    """Write one file with the weights; its metadata holds the specification and the precision.

    With ``features`` it gives the pooled features too, where the model has any.

    Raises:
        UserError: As `build_onnx`, or a file larger than ONNX's 2 GB.
    """
    import onnx

    proto, kept = build_onnx(model, spec, precision=precision, calibration=calibration, features=features)
    try:
        onnx.save(proto, path)
    except ValueError as error:  # protobuf's limit
        raise UserError(f"{spec.model} is too large for one ONNX file ({error})") from error
    return kept


def build_onnx(
    model: nn.Module,
    spec: ModelSpec,
    *,
    precision: Precision,
    calibration: Sequence[Tensor] = (),
    signed: bool = False,
    features: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """Build the ``onnx.ModelProto`` of `write`, and name the parts that int8 leaves in float.

    ``signed`` is `quantize`'s.

    Raises:
        UserError: The model cannot be exported, or int8 without images.
    """
    import onnx

    kept: tuple[str, ...] = ()
    proto = build_graph(model, spec, precision, features=features)
    if precision == "int8":
        proto, kept = quantize(proto, calibration, signed=signed)
    info = {METADATA_KEY: spec.to_json(), PRECISION_KEY: precision, MEMORY_KEY: memory_per_image(model, spec)}
    onnx.helper.set_model_props(proto, info)
    return proto, kept


def build_graph(model: nn.Module, spec: ModelSpec, precision: Precision, *, features: bool = False) -> Any:
    """Build the ``onnx.ModelProto`` without metadata, in float32 for int8; its nodes have readable names.

    Raises:
        UserError: The model cannot be exported.
    """
    program = build_program(model, spec, precision, features=features)
    single = model.members[0] if isinstance(model, Ensemble) else model
    names = list(OUTPUTS.values())[: 3 if isinstance(single, Conformer) else 1]
    if len(program.graph_signature.user_outputs) > len(names):
        names.append(FEATURES)
    try:
        with torch.no_grad(), quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=names,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # such as operators that ONNX does not have
        raise UserError(f"model {spec.model} cannot be exported to ONNX ({first_line(error)})") from error
    if exported is None:
        raise UserError(f"model {spec.model} cannot be exported to ONNX")
    proto = exported.model_proto
    _name_nodes(proto)
    _strip(proto)
    _name_axes(proto)
    return proto


def _name_nodes(proto: Any) -> None:
    """Name every node after the part of the network it comes from: ``blocks.3.fcu_down/Conv_17``.

    Those of an ensemble have the member in front: ``members.0.blocks.3.fcu_down``.
    """
    part = "stem"
    for number, node in enumerate(proto.graph.node):
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(_SCOPES_KEY, "[]")
        names = [scope for scope in ast.literal_eval(scopes) if scope.startswith("model.")]
        if names:  # constants and shapes have none: they belong to the node before them
            inner = names[-1].split(".")[1:]
            member, inner = (inner[:2], inner[2:]) if inner[0] == "members" else ([], inner)
            part = ".".join(member + (inner[:3] if inner[:1] == ["blocks"] else inner[:1]))
        node.name = f"{part}/{node.op_type}_{number}"


def _strip(proto: Any) -> None:
    """Remove the exporter's notes, which name folders of this machine and outweigh a small model."""
    proto.doc_string = ""
    for function in proto.functions:
        del function.metadata_props[:]
    graph = proto.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _name_axes(proto: Any) -> None:
    """Call the free axes of the input what they are, wherever they occur."""
    graph = proto.graph
    names = {
        dim.dim_param: axis
        for axis, dim in zip(_AXES, graph.input[0].type.tensor_type.shape.dim, strict=True)
        if dim.dim_param
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
