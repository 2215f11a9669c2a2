"""Exported files are served without PyTorch, with the answers of the file."""

import sys
from pathlib import Path

import pytest

from conformer_vision import Predictor
from exports import FILES, WITH_EXPORTS
from http_process import CLIENT, started
from http_server import PNG, png
from uninstalled import without

pytestmark = WITH_EXPORTS

COMMAND = """
import sys
from conformer_vision_command import main

sys.argv[1:] = ["serve", *sys.argv[1:], "--port=0"]
sys.exit(main())
"""


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_an_exported_file_is_served_without_pytorch(format: str, exported: Path, tmp_path: Path) -> None:  # noqa: A002
    file = exported / FILES[format]
    hidden = without(["torch", "torchvision", "timm", "sklearn", "scipy", "safetensors"])
    with started([sys.executable, "-c", hidden + COMMAND, str(file)], tmp_path) as server:
        content = server.predict().json()
        explained = CLIENT.post(f"{server.url}/explain", content=png(), headers=PNG)
        server.process.terminate()
        assert server.end()[0] == 0
    (wanted,) = Predictor(file)([png()])
    (answer,) = content["predictions"]
    assert answer["labels"] == list(wanted.labels)
    assert answer["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    assert (content["model"]["name"], content["model"]["format"]) == (file.name, format)
    assert explained.status_code == 409
    assert file.name in explained.json()["error"] and str(exported) not in explained.text
