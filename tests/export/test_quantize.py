"""What int8 leaves in float, on a network made for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from conformer_vision.errors import UserError
from conformer_vision.inference.conversion import quantize as module
from conformer_vision.inference.conversion.quantize import quantize


def network(outlier: float) -> Any:
    """Three convolutions; the second makes one channel so large that 8 bits leave nothing of the others."""
    rng = np.random.default_rng(0)
    shapes = {"first": (8, 3, 3, 3), "second": (8, 8, 1, 1), "third": (8, 8, 1, 1)}
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["second"][0] *= outlier
    weights["third"][:, 0] /= outlier
    nodes, x = [], "images"
    for name in weights:
        nodes.append(helper.make_node("Conv", [x, name], [f"{name}_out"], f"{name}/Conv_0"))
        x = f"{name}_out"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], "head/Pool_0"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"], "head/Flatten_0"))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


IMAGES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_everything_that_may_be_is_quantised() -> None:
    quantized, kept = quantize(network(outlier=1.0), IMAGES)
    assert kept == ()
    assert operators(quantized).count("QuantizeLinear") == 4
    onnx.checker.check_model(quantized)


def test_the_part_that_spoils_the_answers_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PARTS", 1.0)
    quantized, kept = quantize(network(outlier=2000.0), IMAGES)
    assert 0 < len(kept) < 3
    assert {"second", "third"} & set(kept), "the parts on both sides of the large channel"
    assert "first" not in kept
    assert "QuantizeLinear" in operators(quantized)


def test_no_images() -> None:
    with pytest.raises(UserError, match="needs images to calibrate with"):
        quantize(network(outlier=1.0), [])
