"""A run that was killed goes on as if it had not been: real processes, real signals."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch import Tensor

from command_line import ONE_SERVER, start
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.run import resume
from conformer_vision.weights import load_model
from option_tools import killed_after, same, untimed

pytestmark = ONE_SERVER  # and the run without an interruption is made once

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
EVERYTHING: dict[str, Any] = {
    "epochs": 3,
    "max_steps": None,
    "val_fraction": 0.25,
    "batch_size": 8,
    "accumulate": 2,
    "workers": 2,
    "lr": 3e-3,
    "ema_decay": 0.9,
    "mixup": 0.4,
    "cutmix": 0.4,
    "drop_path_rate": 0.2,
    "sampling": "balanced",
    "save_minutes": 1e-9,
    "save_top_k": 2,
    "report": False,
}
"""Everything that has a state of its own or draws at random; 3 epochs of 3 steps, saved after each."""


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    return tiny(**EVERYTHING, output=str(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> Path:
    """The run without an interruption."""
    return train(config)


@pytest.mark.parametrize("batches", [3, 7, 18])
def test_going_on_after_any_batch_gives_the_same_run(
    whole: Path, tiny: Tiny, tmp_path: Path, weights: Weights, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the parts of a step, within an epoch, at its end and after it."""
    run = tmp_path / "run"
    killed_after(batches, tiny(**EVERYTHING | {"workers": 0}, output=str(run)), monkeypatch)
    resume(run)
    for name in ("last.safetensors", "best.safetensors"):
        assert same(weights(run, name), weights(whole, name))
    assert sorted(p.name for p in (run / "top").iterdir()) == sorted(
        p.name for p in (whole / "top").iterdir()
    )
    for path in (run / "top").iterdir():
        assert load_model(path)[1].num_classes == 3
    for mine, other in zip(untimed(run), untimed(whole), strict=True):
        assert mine == other


def test_a_process_killed_at_random_steps(
    whole: Path, config: TrainConfig, tmp_path: Path, weights: Weights
) -> None:
    """SIGKILL to a real process, again and again until one comes to its end."""
    run, output = tmp_path / "run", tmp_path / "output.txt"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    command = ["train", f"--recipe={recipe}", f"--output={run}", "--auto_resume=true"]
    rng = random.Random(0)
    kills = 0
    while kills < 2:
        process = start(*command, output=output)
        _wait_for_saves(process, run / "last.ckpt", rng.randint(1, 2))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, output.read_text()
        kills += 1
    process = start(*command, output=output)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert same(weights(run), weights(whole))
    assert not list(run.rglob(".*"))  # what a kill left half written is gone


def _wait_for_saves(process: ForkServerProcess, checkpoint: Path, count: int) -> None:
    """Wait until a process has replaced its checkpoint so often."""
    seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    while process.is_alive() and count:
        time.sleep(0.01)  # the process needs this core
        now = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        count -= now != seen
        seen = now


@pytest.mark.skipif(sys.platform != "linux", reason="needs processes as Linux has them")
@pytest.mark.parametrize(
    ("harm", "status", "said"),
    [
        (signal.SIGKILL, 2, "error: a reading process was ended by SIGKILL: systems do that when memory"),
        (signal.SIGSTOP, 143, "stopped; continue with: conformer-vision train"),
    ],
    ids=str,
)
def test_a_reading_process_that_ends_or_hangs(
    harm: signal.Signals,
    status: int,
    said: str,
    whole: Path,
    config: TrainConfig,
    tmp_path: Path,
    weights: Weights,
) -> None:
    """One line, and the state is kept; SIGTERM ends the run that waits for a process that hangs."""
    run, output, recipe = tmp_path / "run", tmp_path / "output.txt", tmp_path / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = ["train", f"--recipe={recipe}", f"--output={run}"]
    process = start(*command, output=output, patience=2, TMPDIR=str(temporary))
    _wait_for_saves(process, run / "last.ckpt", 1)
    hurt = psutil.Process(process.pid).children()[0]
    hurt.send_signal(harm)
    if harm == signal.SIGSTOP:
        time.sleep(2)
        process.terminate()
    process.join(90)
    lines = output.read_text().splitlines()
    with suppress(psutil.NoSuchProcess):
        hurt.kill()
    assert process.exitcode == status, lines
    (line,) = [line for line in lines if line.startswith(("error", "stopped", "Traceback"))]
    assert line.startswith(said)
    assert line.endswith(f"--resume {run}")
    assert not list(run.rglob(".*.tmp*"))
    assert not list(temporary.iterdir())
    assert same(weights(resume(run, workers=0)), weights(whole))
    assert "workers: 0\n" in (run / "config.yaml").read_text()


def test_sigterm_saves_and_the_same_command_goes_on(
    whole: Path, config: TrainConfig, tmp_path: Path, weights: Weights
) -> None:
    """What a cluster does to a job that it takes away: a fake scontrol writes down that it was asked."""
    tools = tmp_path / "bin"
    tools.mkdir()
    asked = tmp_path / "asked"
    scontrol = tools / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > "{asked}"\n')
    scontrol.chmod(0o755)
    run = tmp_path / "run"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    command = ["train", f"--recipe={recipe}", f"--output={run}", "--auto_resume=true", "--save_minutes=9"]
    environment = {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "interactive",  # one process, so nothing that srun would have started
    }
    output = tmp_path / "output.txt"
    process = start(*command, output=output, **environment)
    while process.is_alive() and not (run / "metrics.csv").exists():
        time.sleep(0.01)
    process.terminate()
    process.join()
    assert process.exitcode == 143, output.read_text()
    assert asked.read_text().split() == ["requeue", "4711"]
    assert "requeued" in output.read_text()
    process = start(*command, output=output, **environment)
    process.join()
    assert process.exitcode == 0, output.read_text()
    assert same(weights(run), weights(whole))
