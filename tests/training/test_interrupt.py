"""Ctrl-C and going on: in this process, at chosen steps."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import get_worker_info

from conformer_vision.data import loader
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, TrainingInterrupted, interrupt, train
from conformer_vision.training.interrupt import InterruptFlag, requeue, slurm_job
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import build_model
from conformer_vision.training.run import resume
from conformer_vision.weights import load_model
from option_tools import rows_of

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_flag_is_set_by_the_first_and_interrupts_at_the_second(name: str) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    number = signal.Signals[name]
    flag = InterruptFlag()
    with flag.listen():
        assert not flag.is_set
        os.kill(os.getpid(), number)
        assert flag.is_set
        assert flag.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler's reminder ends nothing
        assert flag.is_set
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
def test_warning_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 is listened to in a job alone: elsewhere it may be somebody else's."""
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with InterruptFlag().listen():
        assert signal.getsignal(signal.SIGUSR1) is before
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    flag = InterruptFlag()
    with flag.listen():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert flag.signal == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_number_of_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert slurm_job() == "4712"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert slurm_job() == "4711_3", "of an array, its task"


@pytest.mark.skipif(sys.platform == "win32", reason="SLURM has no Windows")
def test_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a scontrol that writes down what it was asked."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue("4711_3"), "there is no scontrol"
    scontrol = tmp_path / "scontrol"
    for status in (0, 1):
        scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked-{status}\nexit {status}\n')
        scontrol.chmod(0o755)
        assert requeue("4711_3") == (status == 0)
        assert (tmp_path / f"asked-{status}").read_text() == "requeue 4711_3\n"


def test_flag_listens_to_nothing_outside_the_main_thread() -> None:
    seen = []

    def work() -> None:
        with InterruptFlag().listen():
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.fixture
def interrupted(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """Trains three epochs of three steps, with Ctrl-C in the step given; the run folder."""

    def start(at: int, **changes: Any) -> Path:
        output = tmp_path / "run"
        config = tiny(
            **{"epochs": 3, "max_steps": None, "val_fraction": 0.25, "output": str(output)} | changes
        )
        step = ClassifierModule.training_step
        count = 0

        def pressing(self: ClassifierModule, batch: Any, batch_idx: int) -> Tensor:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, batch, batch_idx)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ClassifierModule, "training_step", pressing)
            try:
                train(config)
            except TrainingInterrupted as stopped:
                assert stopped.folder == output
                return output
        assert (output / "best.safetensors").exists()
        raise RuntimeError("training came to its end")

    return start


@pytest.mark.parametrize("at", [1, 3], ids="in step {}".format)
def test_stopped_and_continued(interrupted: Callable[..., Path], tiny: Tiny, tmp_path: Path, at: int) -> None:
    """The weights that it began with are no longer needed."""
    start = tmp_path / "start.safetensors"
    save_file(build_model(tiny().model, 3).state_dict(), start)
    run = interrupted(at, checkpoint=str(start))
    start.unlink()
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == at
    assert load_model(run / "last.safetensors")[1].classes == ("blue", "green", "red")
    before = rows_of(run) if (run / "metrics.csv").exists() else []
    assert len(before) == at // 3, "a row for every whole epoch"

    steps = []
    step = ClassifierModule.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ClassifierModule, "training_step", lambda self, *args: (steps.append(1), step(self, *args))[1]
        )
        assert resume(run) == run
    rows = rows_of(run)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 9)]
    assert len(steps) == 9 - at
    assert [{**row} for row in rows[: len(before)]] == before
    assert all(0 < row["images_per_second"] < 1e5 for row in rows)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert rows[-1]["lr"] < 2e-4, "the schedule went on to its end"
    load_model(run)
    assert str(start) in (run / "config.yaml").read_text(), "the recipe still says how the run began"


@pytest.mark.parametrize(("at", "changes"), [(3, {"epochs": 1}), (4, {"max_steps": 4})], ids=str)
def test_last_step_ends_as_usual(
    interrupted: Callable[..., Path], tmp_path: Path, at: int, changes: dict[str, int]
) -> None:
    """And a finished run stays as it is."""
    with pytest.raises(RuntimeError, match="training came to its end"):
        interrupted(at, **changes)
    run = tmp_path / "run"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "config.yaml"}
    resume(run)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "config.yaml"} == before


def test_second_interrupt_ends_at_once(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def pressing(self: ClassifierModule, batch: Any, batch_idx: int) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still running")

    monkeypatch.setattr(ClassifierModule, "training_step", pressing)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(tiny(output=str(tmp_path / "run")))
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not (tmp_path / "run").exists(), "there is nothing in it to go on from"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform != "linux", reason="needs processes as Linux has them")
@pytest.mark.parametrize(
    ("training", "batch", "wait", "steps"),
    [(True, 3, 3, 1), (True, 4, 4, 2), (False, 2, 8, 3)],
    ids=["between two steps", "within a step", "in validation"],
)
def test_a_reading_process_that_hangs_costs_nothing(
    training: bool,
    batch: int,
    wait: int,
    steps: int,
    tiny: Tiny,
    tmp_path: Path,
    weights: Callable[..., dict[str, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing was saved before; the main process reads what a step or a validation lacks."""
    read, waiting = loader._Transformed.__getitems__, InterruptFlag.waiting
    reads = waits = 0

    def hanging(self: Any, draws: list[Any]) -> Any:
        nonlocal reads
        if get_worker_info() is not None and self._replace_broken == training:
            reads += 1
            if reads == batch:
                time.sleep(1000)
        return read(self, draws)

    def ending(self: InterruptFlag) -> Any:
        nonlocal waits
        waits += 1
        if waits == wait:
            os.kill(os.getpid(), signal.SIGTERM)
        return waiting(self)

    def config(run: str, workers: int) -> TrainConfig:
        options = {"epochs": 2, "max_steps": None, "val_fraction": 0.25, "accumulate": 2}
        return tiny(**options, workers=workers, output=str(tmp_path / run))

    others = set(psutil.Process().children())  # of other tests
    with monkeypatch.context() as patch:
        patch.setattr(interrupt, "PATIENCE", 2.0)
        patch.setattr(loader._Transformed, "__getitems__", hanging)
        patch.setattr(InterruptFlag, "waiting", ending)
        with pytest.raises(TrainingInterrupted) as caught:
            train(config("run", 1))
    run = caught.value.folder
    assert run is not None and caught.value.signal == signal.SIGTERM
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == steps
    assert len(rows_of(run)) == 1 if steps == 3 else not (run / "metrics.csv").exists()
    assert set(psutil.Process().children()) <= others
    mine, other = weights(resume(run, workers=0)), weights(train(config("whole", 0)))
    assert all(torch.equal(mine[name], other[name]) for name in other)


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed")
def test_a_run_folder_that_is_gone_is_one_line_at_once(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers have the sockets of the main process, and are ended too."""
    run, step, before = tmp_path / "run", ClassifierModule.training_step, active_children()

    def stopping(self: ClassifierModule, batch: Any, batch_idx: int) -> Tensor:
        shutil.rmtree(run)
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ClassifierModule, "training_step", stopping)
    monkeypatch.setattr(interrupt, "PATIENCE", 1000)
    with pytest.raises(UserError, match=f"cannot write {run}.*: No such file"):
        train(tiny(workers=1, epochs=2, max_steps=None, output=str(run)))
    for worker in set(active_children()) - set(before):
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_broken_state_is_one_line(interrupted: Callable[..., Path], tmp_path: Path) -> None:
    run = interrupted(2)
    state, config = (run / "last.ckpt").read_bytes(), (run / "config.yaml").read_text()

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            resume(run)
        assert "\n" not in str(caught.value)
        assert (run / "last.safetensors").exists()
        return str(caught.value)

    for broken in (state[:5000], state[:-5000], b"", b"no checkpoint"):
        (run / "last.ckpt").write_bytes(broken)
        assert "last.ckpt is not a whole checkpoint" in refused()
    torch.save({"state_dict": {}}, run / "last.ckpt")
    assert "last.ckpt is not a whole checkpoint" in refused()
    trap = tmp_path / "sprung"
    torch.save({"state_dict": Trap(trap)}, run / "last.ckpt")
    assert "last.ckpt is not a whole checkpoint" in refused()
    assert not trap.exists()

    (run / "last.ckpt").write_bytes(state)
    (run / "config.yaml").write_text(
        config.replace("depths:\n  - 2\n  - 1\n  - 2", "depths:\n  - 2\n  - 2\n  - 2")
    )
    assert "holds another model" in refused()
    (run / "config.yaml").write_text("epochs: [")
    assert "config.yaml is not YAML" in refused()
    (run / "config.yaml").unlink()
    assert "no config.yaml, so it is no run to resume" in refused()


def test_a_run_without_a_checkpoint_begins_again(
    interrupted: Callable[..., Path], tiny: Tiny, tmp_path: Path, weights: Callable[..., dict[str, Tensor]]
) -> None:
    run = interrupted(2)
    (run / "last.ckpt").unlink()
    resume(run)
    whole = train(tiny(epochs=3, max_steps=None, val_fraction=0.25, output=str(tmp_path / "whole")))
    assert [row["epoch"] for row in rows_of(run)] == [1, 2, 3]
    mine, other = weights(run), weights(whole)
    assert all(torch.equal(mine[name], other[name]) for name in other)
