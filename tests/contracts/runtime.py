"""What every runtime has to do; a new one inherits this class."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from conformer_vision import Predictor
from conformer_vision.errors import UserError
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.runtime.base import Runtime
from conformer_vision.weights import load_model
from exports import FILES


def one_line(path: Path, device: str = "cpu") -> str:
    """The line in which a file is refused; it names the file or the device."""
    with pytest.raises(UserError) as caught:
        open_runtime(path, device=device)
    line = str(caught.value)
    assert "\n" not in line
    return line


class RuntimeContract:
    """Tests of one runtime, on the session's export that it reads."""

    name: ClassVar[str]
    """Format of the file."""
    library: ClassVar[str | None] = None
    """Library that the runtime needs besides PyTorch."""

    @pytest.fixture
    def file(self, exported: Path, tmp_path: Path) -> Path:
        """A copy of the file, which a test may change."""
        source = exported / FILES[self.name]
        for path in (source, source.with_suffix(".bin")):
            if path.exists():
                shutil.copy(path, tmp_path / f"copy{path.suffix}")
        return tmp_path / f"copy{source.suffix}"

    @pytest.fixture
    def runtime(self, file: Path) -> Runtime:
        return open_runtime(file, device="cpu")

    def without_spec(self, file: Path) -> None:
        """Take the model spec out of the file."""
        raise NotImplementedError

    @pytest.mark.parametrize("size", [(1, 32, 32), (3, 47, 61), (2, 33, 130)], ids=str)
    def test_logits_of_every_head(self, runtime: Runtime, exported: Path, size: tuple[int, int, int]) -> None:
        model, spec = load_model(exported)
        batch, height, width = size
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))
        with torch.inference_mode():
            branches = model.forward_branches(images)  # type: ignore[operator]
            expected = branches._asdict() | {"fused": model.fuse_logits(branches)}  # type: ignore[operator]
        actual = runtime(images.numpy())
        assert list(actual) == ["conv", "trans", "fused"]
        for head, logits in actual.items():
            assert logits.dtype == np.float32
            scale = float(expected[head].abs().max())
            np.testing.assert_allclose(logits, expected[head].numpy(), rtol=1e-4, atol=1e-4 * scale)
        assert replace(runtime.spec, folded=spec.folded) == spec

    def test_answers_stay_after_the_next_call(self, runtime: Runtime) -> None:
        images, others = np.random.default_rng(0).normal(size=(2, 2, 3, 32, 32)).astype(np.float32)
        first = runtime(images)
        kept = {head: logits.copy() for head, logits in first.items()}
        runtime(others)
        for head, logits in first.items():
            assert np.array_equal(logits, kept[head])

    def test_several_threads(self, file: Path) -> None:
        """Each thread gets the answers of its own images."""
        predictor = Predictor(file, device="cpu", batch_size=2)
        rng = np.random.default_rng(0)
        images = [
            [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(4)]
            for _ in range(6)
        ]
        expected = [predictor(some) for some in images]
        assert len({answer.probabilities for some in expected for answer in some}) == 24
        start, wrong = threading.Barrier(6), []

        def work(number: int) -> None:
            start.wait(20)
            for _ in range(5):
                for ours, right in zip(predictor(images[number]), expected[number], strict=True):
                    if not np.allclose(ours.probabilities, right.probabilities, atol=1e-5):
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    @pytest.mark.parametrize("device", ["mps", "gpu", "meta", "cuda:99"])
    def test_a_device_that_cannot_be_used(self, file: Path, device: str) -> None:
        assert f"device '{device}'" in one_line(file, device)

    @pytest.mark.parametrize("damage", ["half", "empty", "noise", "text"])
    def test_damaged(self, file: Path, damage: str) -> None:
        content = file.read_bytes()
        damaged = {"half": content[: len(content) // 2], "empty": b"", "text": b"hi"}
        file.write_bytes(damaged.get(damage, bytes(range(256)) * 64))
        assert str(file) in one_line(file)

    def test_without_a_spec(self, file: Path) -> None:
        self.without_spec(file)
        assert "has no model spec" in one_line(file)

    def test_a_missing_library(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if self.library is None:
            assert open_runtime(file, device="cpu")  # core dependencies are enough
            return
        monkeypatch.setitem(__import__("sys").modules, self.library, None)
        assert f"{self.library} is not installed: pip install 'conformer-vision[export]'" in one_line(file)
