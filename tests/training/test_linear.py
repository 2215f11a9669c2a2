"""Linear layers of a run as matrix products or as convolutions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.models.pointwise import PointwiseLinear
from conformer_vision.training import TrainConfig, linear, train
from conformer_vision.training.folds import _as_first
from conformer_vision.training.groups import HardwareConfig
from conformer_vision.training.linear import choose_linear
from conformer_vision.training.parts import prepare
from conformer_vision.training.recipe import read_config
from option_tools import shows

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The convolution is faster; whether each measurement had a backward pass."""
    calls: list[bool] = []

    def faster(model: nn.Module, *, backward: bool = False) -> bool:
        calls.append(backward)
        return True

    monkeypatch.setattr(linear, "pointwise_is_faster", faster)
    return calls


def kernels(config: TrainConfig) -> set[type]:
    modules = prepare(config).module.modules()
    return {type(module) for module in modules if isinstance(module, nn.Linear)}


@shows("linear")
def test_both_train_the_same_network(tiny: Tiny, tmp_path: Path, weights: Weights) -> None:
    options: dict[str, Any] = {"drop_path_rate": 0.2, "precision": "32", "optimizer": "sgd", "lr": 0.01}
    found = {
        how: weights(train(tiny(**options, linear=how, output=str(tmp_path / how))))
        for how in ("matmul", "convolution")
    }
    assert found["matmul"].keys() == found["convolution"].keys()
    for name, expected in found["matmul"].items():
        torch.testing.assert_close(found["convolution"][name], expected, rtol=1e-4, atol=1e-5, msg=name)
    assert kernels(tiny(**options, linear="matmul")) == {nn.Linear}
    assert kernels(tiny(**options, linear="convolution")) == {PointwiseLinear}


def test_what_is_chosen_is_kept(
    tiny: Tiny, tmp_path: Path, measured: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the run itself, by the run that goes on, and by other folds."""
    given = tiny(linear="auto", precision="32", keep_state=True, output=str(tmp_path / "run"))
    run = train(given)
    assert "\nlinear: convolution, which is faster here" in capsys.readouterr().out
    kept = read_config(run / "config.yaml")
    assert (kept.hardware.linear, measured) == ("convolution", [True])
    assert kernels(kept) == {PointwiseLinear}
    assert measured == [True], "not again"
    assert _as_first(given, kept).hardware.linear == "convolution"
    assert _as_first(tiny(linear="matmul"), kept).hardware.linear == "matmul"
    assert train(replace(given, output=replace(given.output, auto_resume=True))) == run


def test_where_nothing_is_measured(measured: list[bool]) -> None:
    float32 = HardwareConfig(precision="32")
    cpu, model = torch.device("cpu"), nn.Linear(4, 4)
    for hardware, device, processes in (
        (replace(float32, precision="bf16-mixed"), cpu, 1),
        (replace(float32, compile=True), cpu, 1),
        (float32, torch.device("cuda"), 1),
        (float32, cpu, 2),
        (replace(float32, linear="matmul"), cpu, 1),
    ):
        assert choose_linear(model, hardware, device=device, processes=processes) == "matmul"
    asked = replace(float32, linear="convolution", precision="bf16-mixed")
    assert choose_linear(model, asked, device=cpu, processes=2) == "convolution"
    assert measured == []
    assert choose_linear(model, float32, device=cpu, processes=1) == "convolution"
    assert measured == [True]
