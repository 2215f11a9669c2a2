"""The learning-rate range test: what it reads from a curve, and a real one of a second."""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from command_line import MODEL
from conformer_vision.cli import main
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig
from conformer_vision.training.lr_find import MAX_LR, MIN_LR, _unbiased, draw_lr, find_lr, read_curve
from conformer_vision.training.module import ClassifierModule

Tiny = Callable[..., TrainConfig]


def valley(bottom: float) -> tuple[list[float], list[float]]:
    """A loss that falls to its lowest at a learning rate and then rises steeply."""
    lrs = [10 ** (-6 + 0.06 * i) for i in range(101)]
    losses = [
        2.3 - math.exp(-((math.log10(lr / bottom)) ** 2)) + max(0, math.log10(lr / bottom)) for lr in lrs
    ]
    return lrs, losses


def test_a_tenth_of_the_lowest() -> None:
    found = read_curve(*valley(1e-2))
    assert found.suggestion == pytest.approx(1e-3, rel=0.2)
    assert found.diverges_at == pytest.approx(1.0)


def test_a_curve_that_does_not_rise_again() -> None:
    lrs, losses = valley(1e-1)
    assert read_curve(lrs[:80], losses[:80]).diverges_at is None


@pytest.mark.parametrize("losses", [[2.3] * 50, [2.3 + 0.01 * i for i in range(50)], [], [1.0]])
def test_a_loss_that_never_falls_is_one_line(losses: list[float]) -> None:
    with pytest.raises(UserError, match="steps"):
        read_curve([10 ** (-5 + 0.1 * i) for i in range(len(losses))], losses)


def test_the_running_mean_of_a_constant_is_the_constant() -> None:
    """lightning's own starts at half of it: its count of steps is one ahead."""
    beta, mean, given = 0.98, 0.0, []
    for step in range(1, 30):
        mean = beta * mean + (1 - beta) * 2.0
        given.append(mean / (1 - beta ** (step + 1)))
    assert given[0] < 1.1
    assert _unbiased(given) == pytest.approx([2.0] * 29)


def test_a_real_search_and_its_image(tiny: Tiny, tmp_path: Path) -> None:
    found = find_lr(tiny(epochs=9, max_steps=None, lr=1e-3), steps=30)
    assert found.lrs[0] == pytest.approx(MIN_LR, rel=0.1)
    assert found.lrs == sorted(found.lrs)
    assert found.lrs[-1] <= MAX_LR * 1.01
    assert MIN_LR < found.suggestion < MAX_LR
    draw_lr(found, tmp_path / "lr.png")
    with Image.open(tmp_path / "lr.png") as image:
        assert min(image.size) > 300


def test_what_cannot_be_searched(tiny: Tiny) -> None:
    for changes, steps, match in (
        ({}, 5, "steps 5"),
        ({"batch_size": "auto"}, 50, "batch_size"),
        ({"devices": 2}, 50, "one process"),
    ):
        with pytest.raises(UserError, match=match):
            find_lr(tiny(**changes), steps=steps)


def test_a_loss_that_stops_being_finite_ends_the_curve(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before is read."""
    step = ClassifierModule.training_step
    losses = [2.0 - 0.05 * number if number < 12 else math.nan for number in range(20)]

    def fixed(self: ClassifierModule, batch: Any, number: int) -> Tensor:
        loss = step(self, batch, number)
        return loss - loss.detach() + losses[self.global_step]

    monkeypatch.setattr(ClassifierModule, "training_step", fixed)
    found = find_lr(tiny(), steps=20)
    assert len(found.losses) == 12
    assert all(map(math.isfinite, found.losses))
    assert found.suggestion == pytest.approx(found.lrs[-1] / 10)


def test_its_bar_is_for_a_terminal(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        shown = io.StringIO()
        monkeypatch.setattr(shown, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", shown)
        find_lr(tiny(), steps=20)
        assert ("20/20" in shown.getvalue()) == terminal
        assert terminal or not shown.getvalue()


def test_the_command(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "lr.png"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 1\nlr: 0.5\nsave_top_k: 3\nmixup: 0.2\n")
    options = [
        *MODEL,
        f"--recipe={recipe}",
        "--batch_size=8",
        "--workers=0",
        "--device=cpu",
        "--steps=30",
        f"--plot={plot}",
    ]
    assert main(["lr-find", f"--data={images}", *options]) == 0
    printed = capsys.readouterr()
    assert "\nsuggested: --lr " in printed.out
    for option in ("--lr=1e-3", "--output=runs/x", "--epochs=3"):
        assert main(["lr-find", f"--data={images}", option]) == 2
        assert f"unknown option {option.partition('=')[0]}" in capsys.readouterr().err
    assert plot.is_file()
    assert printed.err == ""
