"""Nobody reads what training prints, or it cannot be written: the run is trained and kept all the same."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest

from command_line import COMMAND, ENVIRONMENT, MODEL, ONE_SERVER, class_folders, start
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, folder, progress, train
from conformer_vision.training.run import resume
from option_tools import rows_of

Tiny = Callable[..., TrainConfig]


def options(folder: Path, run: Path) -> list[str]:
    data = class_folders(folder / "data", a=8, b=8)
    options = [f"--data={data}", *MODEL, "--batch_size=4", "--epochs=3", "--workers=1", "--device=cpu"]
    return [*options, "--report=false", f"--output={run}"]


def assert_complete(run: Path) -> None:
    assert [row["epoch"] for row in rows_of(run)] == [1, 2, 3]
    assert '"finished": true' in (run / "results.json").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_the_run_is_complete_without_any_output(tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = f"{shlex.join([*COMMAND, 'train', *options(tmp_path, run)])} >&- 2>&-"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_complete(run)


@ONE_SERVER
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_run_is_complete_on_a_full_disk(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start("train", *options(tmp_path, run), output=Path("/dev/full"))
    process.join(100)
    assert process.exitcode == 0
    assert_complete(run)


@ONE_SERVER
@pytest.mark.skipif(sys.platform == "win32", reason="needs a named pipe")
def test_the_run_is_complete_though_its_reader_has_enough(tmp_path: Path) -> None:
    run, pipe = tmp_path / "run", tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start("train", *options(tmp_path, run), output=pipe)
    with pipe.open() as reader:
        assert reader.readline().startswith("data: ")
    process.join(100)
    assert process.exitcode == 0
    assert_complete(run)


RESNET: dict[str, Any] = {"model": "test_resnet", "model_kwargs": {}, "max_steps": None, "epochs": 1}


def test_what_is_printed_has_been_saved(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even output that raises comes after the epoch's files."""
    run = tmp_path / "run"

    def breaking(line: str) -> None:
        if line.startswith("epoch"):
            raise BrokenPipeError

    monkeypatch.setattr(progress, "say", breaking)
    with pytest.raises(BrokenPipeError):
        train(tiny(**RESNET, output=str(run)))
    assert {"best.safetensors", "last.ckpt", "metrics.csv", "results.json"} <= {p.name for p in run.iterdir()}


def full(*arguments: Any, **options: Any) -> None:
    raise UserError("cannot write it: No space left on device")


def test_curves_that_cannot_be_drawn_end_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "draw_curves", full)
    run = train(tiny(**RESNET, output=str(tmp_path / "run")))
    assert capsys.readouterr().err == "no curves: cannot write it: No space left on device\n"
    assert (run / "results.json").is_file()


def test_a_first_checkpoint_that_cannot_be_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run can begin again, where it is or, if nothing was written, by the same command."""
    run = tmp_path / "run"
    config = tiny(**RESNET, output=str(run))
    for name in ("save_weights", "atomic_path"):  # the best weights; the checkpoint behind them
        with monkeypatch.context() as patch:
            patch.setattr(folder, name, full)
            with pytest.raises(UserError, match="No space left"):
                train(config)
        assert not run.exists()
    with monkeypatch.context() as patch:
        patch.setattr(lightning.Trainer, "save_checkpoint", full)
        with pytest.raises(UserError, match="No space left"):
            train(config)
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "best.safetensors"}
    resume(run)
    assert [row["epoch"] for row in rows_of(run)] == [1]
