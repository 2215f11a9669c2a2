"""The precision that a run chooses by measuring, and that the measurement leaves no trace."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformer_vision.training import TrainConfig, parts, precision, train
from conformer_vision.training.continuing import check_same, decided
from conformer_vision.training.folds import _as_first
from conformer_vision.training.parts import prepare
from conformer_vision.training.precision import BFLOAT16, FLOAT32, Choice, Precision, choose_precision
from conformer_vision.training.recipe import read_config
from option_tools import same, untimed

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]


class Layers(nn.Module):
    """A network that says which sizes it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def choose(images: int = 8, **changes: Any) -> Choice:
    options: dict[str, Any] = {"steps": 100, "device": torch.device("cpu"), "images": images} | changes
    return choose_precision(
        Layers(), (1, 2, 2), optimizer=lambda model, _: torch.optim.SGD(model.parameters(), lr=0.1), **options
    )


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[Precision, float]:
    """What a step takes in each precision, without taking it."""
    found = {FLOAT32: 0.3, BFLOAT16: 0.1}
    monkeypatch.setattr(precision._Steps, "_seconds", lambda self, which, images: found[which])
    return found


@pytest.mark.parametrize(("half", "chosen"), [(0.1, BFLOAT16), (0.25, BFLOAT16), (0.251, FLOAT32)])
def test_bfloat16_must_be_faster_by_a_fifth(
    seconds: dict[Precision, float], half: float, chosen: Precision
) -> None:
    seconds[BFLOAT16] = half
    found = choose()
    assert found.precision == chosen
    assert found.line is not None
    assert found.line.startswith(f"precision: {chosen}")
    assert f" {0.3 / half:.2f} times as fast " in found.line
    assert len(found.line) <= 80


def test_a_processor_that_only_emulates_bfloat16_takes_one_slow_step(seconds: dict[Precision, float]) -> None:
    taken = []
    seconds |= {FLOAT32: 0.3, BFLOAT16: 9.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            precision._Steps, "_seconds", lambda self, which, _: (taken.append(which), seconds[which])[1]
        )
        assert choose().precision == FLOAT32
    assert taken.count(BFLOAT16) == 1


def test_the_batch_grows_while_steps_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to that of the run; where memory runs out, the size before is measured."""
    noise = precision._Steps._noise

    def limited(self: Any, size: int) -> Tensor:
        if size > 8:
            raise RuntimeError("CUDA out of memory")
        return noise(self, size)

    assert "a step of 23 images" in str(choose(23).line)
    assert "a step of 1 images" in str(choose(1).line)
    monkeypatch.setattr(precision._Steps, "_noise", limited)
    assert "a step of 8 images" in str(choose(23).line)
    monkeypatch.setattr(precision._Steps, "_seconds", lambda self, which, images: 1.1)
    assert "a step of 2 images" in str(choose(23).line)


def test_where_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run, a device without bfloat16, one that was never tried."""
    monkeypatch.setattr(precision, "_Steps", None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert choose(steps=49) == Choice(FLOAT32)
    assert choose(device=torch.device("mps")) == Choice(FLOAT32)
    found = choose(device=torch.device("cuda"))
    assert found == Choice(FLOAT32, "precision: 32, as this GPU has no bfloat16")


EVERYTHING: dict[str, Any] = {
    "max_steps": 3, "batch_size": 4, "mixup": 0.3, "ema_decay": 0.9, "drop_path_rate": 0.2, "clip_grad": 1.0,
    "model_kwargs": {"depths": [2, 1, 2], "drop_rate": 0.1}, "keep_state": True, "accumulate": 2,
}  # fmt: skip


@pytest.mark.parametrize("chosen", [FLOAT32, BFLOAT16])
def test_the_measurement_leaves_no_trace(
    tiny: Tiny,
    tmp_path: Path,
    weights: Weights,
    chosen: Precision,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole state is that of a run which was given the precision, and so is its configuration."""
    monkeypatch.setattr(precision, "FEWEST_STEPS", 1)
    monkeypatch.setattr(precision, "FASTER", 0.0 if chosen == BFLOAT16 else 1e9)
    mine = train(tiny(**EVERYTHING, output=str(tmp_path / "auto")))
    assert f"\nprecision: {chosen}" in capsys.readouterr().out
    given = train(tiny(**EVERYTHING, precision=chosen, output=str(tmp_path / "given")))
    assert "\nprecision: " not in capsys.readouterr().out
    assert same(weights(mine), weights(given))
    assert same(weights(mine, "best.safetensors"), weights(given, "best.safetensors"))
    states = [torch.load(run / "last.ckpt", weights_only=True) for run in (mine, given)]
    for state in states:
        del state["callbacks"]  # times among them; the average is elsewhere
    assert _equal(*states)
    assert untimed(mine) == untimed(given)
    assert (mine / "config.yaml").read_text() == (given / "config.yaml").read_text()
    assert read_config(mine / "config.yaml").hardware.precision == chosen


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def test_the_network_and_the_random_numbers_stay() -> None:
    """Also of a network whose forward pass changes it, as BatchNorm's does."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)
    )
    before, random = deepcopy(model.state_dict()), torch.get_rng_state()
    choose_precision(
        model.eval(), (3, 8, 8), images=4, steps=100, device=torch.device("cpu"),
        optimizer=lambda each, _: torch.optim.SGD(each.parameters(), lr=0.1),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), random)
    assert _equal(dict(before), dict(model.state_dict()))
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_max_minutes_counts_the_measurement(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_choose", lambda *_, **__: Choice(BFLOAT16, None, 30.0))
    made = prepare(tiny(max_minutes=1.0))
    assert made.schedule.clock.elapsed == 30
    assert made.schedule.clock.left == 30
    assert made.config.hardware.precision == BFLOAT16
    assert prepare(tiny(precision="32", max_minutes=1.0)).schedule.clock.elapsed == 0


def test_a_run_that_goes_on_and_other_folds_keep_the_choice(tiny: Tiny, tmp_path: Path) -> None:
    given = tiny(output=str(tmp_path))
    kept = decided(prepare(replace(given, hardware=replace(given.hardware, precision=BFLOAT16))).config)
    check_same(given, kept, tmp_path)
    assert _as_first(given, kept).hardware.precision == BFLOAT16
    assert _as_first(tiny(precision=FLOAT32), kept).hardware.precision == FLOAT32
