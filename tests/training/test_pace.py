"""A step waits neither for the device nor for other processes; about once a second all look and agree."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformer_vision.training import TrainConfig, pace, progress, train
from conformer_vision.training.pace import Pace
from several_labels import Squares
from waits import LAST, counted

Tiny = Callable[..., TrainConfig]
STEPS: dict[str, Any] = {"batch_size": 2, "max_steps": LAST + 2, "lr": 1e-4}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "ema_decay": 0.9, "ema_warmup": True, "mixup": 0.3, "cutmix": 0.5, "clip_grad": 1.0,
        "precision": "bf16-mixed", "drop_path_rate": 0.1, "max_minutes": 60.0,
    },
    "accumulated": {
        "accumulate": 2, "batch_size": 4, "max_steps": LAST // 2 + 1, "class_weights": "balanced",
    },
    "several labels": {
        "data": Squares(), "mixup": 0.3, "class_weights": "balanced", "label_smoothing": 0.1,
    },
    "asymmetric": {"data": Squares(), "loss": "asl", "ema_decay": 0.9},
}  # fmt: skip


@pytest.fixture(scope="module")
def taught(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("teacher") / "run"
    return train(tiny(max_steps=1, input_size=48, output=str(run)))


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first step is looked at, and no line is printed within an epoch."""
    monkeypatch.setattr(pace, "SECONDS", 1e6)
    monkeypatch.setattr(progress, "_EVERY_SECONDS", 1e6)


@pytest.mark.usefixtures("rarely")
@pytest.mark.parametrize("name", RUNS)
def test_no_step_waits(tiny: Tiny, tmp_path: Path, name: str) -> None:
    with counted() as found:
        train(tiny(**STEPS | RUNS[name], output=str(tmp_path / "run")))
    assert found == ["end"]


@pytest.mark.usefixtures("rarely")
def test_no_step_with_a_teacher_waits(tiny: Tiny, taught: Path, images: Path, tmp_path: Path) -> None:
    """Some of whose images have no label, and in which the heads alone learn.

    Only where all layers begin to learn, or images grow, the guard looks once more.
    """
    options = {"teacher": str(taught), "unlabelled": str(images / "red"), "mixup": 0.3, "ema_decay": 0.9}
    stages = {"checkpoint": str(taught / "last.safetensors"), "freeze_share": 0.9}
    with counted() as found:
        train(tiny(**STEPS | options | stages, output=str(tmp_path / "run")))
    assert found == ["end"]


def test_a_look_is_counted(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rarely: None) -> None:
    """Else the tests above would show nothing: after the first step, those of the batches 3 and 6."""
    monkeypatch.setattr(pace, "MOST_STEPS", 3)
    with counted() as found:
        train(tiny(**STEPS, output=str(tmp_path / "run")))
    assert found.count("__bool__") == 2
    assert found.count("aten._local_scalar_dense") == 2
    assert found[-1] == "end"


@pytest.mark.parametrize(
    ("seconds", "accumulate", "looks"),
    [(0.125, 1, [0, 8, 16, 24, 32]), (5.0, 1, [*range(40)]), (1e-6, 1, [0]), (0.25, 2, [1, 9, 17, 25, 33])],
    ids=str,
)
def test_steps_between_looks(seconds: float, accumulate: int, looks: list[int]) -> None:
    """As many as take a second, 50 at most; always at the end of an optimizer step."""
    now = 0.0
    waited = Pace(now=lambda: now)
    trainer: Any = SimpleNamespace(is_last_batch=False, accumulate_grad_batches=accumulate, world_size=1)
    module: Any = None
    waited.on_train_start(trainer, module)
    found, begun = [], []
    for number in range(40):
        waited.on_train_batch_start(trainer, module, None, number)
        begun += [number] * waited.begins
        found += [number] * waited.due
        now += seconds / accumulate
    assert found == looks
    assert begun == [0, *(number + 1 for number in looks if number < 39)]
