"""Every runtime under the one contract, and what is each one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from conformer_vision.inference.runtimes import open_runtime
from contracts.runtime import RuntimeContract, one_line
from exports import WITH_EXPORTS

pytestmark = WITH_EXPORTS


class TestWeights(RuntimeContract):
    name = "folded"

    def without_spec(self, file: Path) -> None:
        save_file(load_file(file), file)


class TestOnnx(RuntimeContract):
    name = "onnx"
    library = "onnxruntime"

    def without_spec(self, file: Path) -> None:
        proto = onnx.load(file)
        del proto.metadata_props[:]
        onnx.save(proto, file)

    def test_another_input(self, file: Path) -> None:
        proto = onnx.load(file)
        proto.graph.input.append(onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, [1]))
        onnx.save(proto, file)
        assert "does not have the one input 'images'" in one_line(file)


class TestOpenVino(RuntimeContract):
    name = "openvino"
    library = "openvino"

    def without_spec(self, file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        file.write_text(
            text.replace("<conformer_vision>", "<other>").replace("</conformer_vision>", "</other>")
        )

    def test_without_the_weights_beside_it(self, file: Path) -> None:
        file.with_suffix(".bin").unlink()
        assert "copy.bin does not exist" in one_line(file)


@pytest.mark.parametrize("suffix", [".pt2", ".torchscript"])
def test_files_that_could_run_code_are_not_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    line = one_line(path)
    assert f"{path} is not opened" in line and "export the model to onnx or openvino" in line


def test_a_network_with_one_head(resnet_run: Path) -> None:
    runtime = open_runtime(resnet_run, device="cpu")
    assert {head: logits.shape for head, logits in runtime(np.zeros((2, 3, 40, 32), np.float32)).items()} == {
        "fused": (2, 4)
    }
