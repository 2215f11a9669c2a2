"""One small trained run, and each format of it once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conformer_vision.inference.networks import Network, open_network

from command_line import TINY, run

FILES = {
    "folded": "model-folded.safetensors",
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "torch-export": "model.pt2",
    "torchscript": "model.torchscript",
}
# In one process of pytest-xdist: making the files takes longer than looking at them.
# On a machine that does other work it takes more than the two minutes that other tests have.
WITH_EXPORTS = [pytest.mark.xdist_group("export"), pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two steps on the digits, with every format in float32 beside the weights."""
    folder = tmp_path_factory.mktemp("export") / "run"
    done = run("train", "--data", "digits", *TINY, "--output", folder)
    assert (done.status, done.err) == (0, "")
    for name, file in FILES.items():
        done = run("export", folder, "--format", name)
        assert done.status == 0, done.err
        assert f"{folder / file}: {name}, fp32" in done.out
        assert "worst difference from the model on 19 images" in done.out
    return folder


@pytest.fixture(scope="session")
def opened(small_run: Path) -> Callable[[str], Network]:
    """The network of each format, opened once."""
    return cache(lambda name: open_network(small_run / FILES[name], device="cpu"))
