"""Triton's configuration fits the files that `export` writes."""

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime

from conformer_vision.serve.limits import Limits
from exports import WITH_EXPORTS

pytestmark = WITH_EXPORTS
CONFIG = Path(__file__).resolve().parents[2] / "docker" / "triton" / "config.pbtxt"


def configuration() -> dict[str, Any]:
    """The configuration as values: its text format is JSON but for quotes and commas."""
    text = re.sub(r"#.*", "", CONFIG.read_text())
    text = re.sub(r"(\w+)\s*([\[{])", r"\1: \2", text)
    text = re.sub(r"\b(TYPE_\w+)", r'"\1"', re.sub(r"(\w+):", r'"\1":', text))
    return json.loads("{" + re.sub(r'([\]}"\d])\s*\n(?=")', r"\1,\n", text.strip()) + "}")


def test_it_fits_an_exported_file(exported: Path) -> None:
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"))
    found = configuration()
    assert found["platform"] == "onnxruntime_onnx" and found["max_batch_size"] >= Limits().max_batch
    for of_file, of_triton in (
        (session.get_inputs(), found["input"]),
        (session.get_outputs(), found["output"]),
    ):
        parts = {part.name: part for part in of_file}
        assert {part["name"] for part in of_triton} <= parts.keys()
        for part in of_triton:
            shape = parts[part["name"]].shape
            assert parts[part["name"]].type == "tensor(float)" and part["data_type"] == "TYPE_FP32"
            assert isinstance(shape[0], str) and len(shape) == 1 + len(part["dims"])  # Triton adds the batch
            for free, given in zip(shape[2:], part["dims"][1:], strict=True):
                assert isinstance(free, str) or free == given
    (image,), (given,) = session.get_inputs(), found["input"]
    assert (given["name"], given["dims"][0]) == (image.name, image.shape[1])
