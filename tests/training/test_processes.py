"""Several processes train as one: two that talk over gloo, started as users start them."""

import socket
import subprocess
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from command_line import ONE_SERVER, spawn, start
from conformer_vision.cli import main
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.processes import ended
from option_tools import rows_of
from waits import main_counted

Tiny = Callable[..., TrainConfig]
Weights = Callable[..., dict[str, Tensor]]
PLAIN: dict[str, Any] = {
    "epochs": 2,
    "max_steps": None,
    "val_fraction": 0.3,
    "batch_size": 8,
    "drop_path_rate": 0.0,
    "report": False,
    "lr": 1e-3,
    "optimizer": "sgd",
}
"""Nothing drawn per process, and an optimiser that does not blow rounding up as Adam's first steps do."""
NO_BATCHNORM: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_kwargs": {"depth": 2, "embed_dim": 24, "num_heads": 2},
}


def recipe_of(config: TrainConfig, folder: Path) -> Path:
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(config.to_yaml())
    return recipe


def run_two(config: TrainConfig, folder: Path) -> Path:
    """The run by two processes, one of which the command starts."""
    run = folder / "run"
    done = spawn("train", f"--recipe={recipe_of(config, folder)}", f"--output={run}", "--devices=2")
    assert done.status == 0, done.err
    assert done.out.count("run folder:") == 1
    return run


def run_by_torchrun(config: TrainConfig, folder: Path) -> Path:
    """The run by two processes that torchrun's agent starts."""
    run, output = folder / "run", folder / "output.txt"
    recipe = recipe_of(config, folder)
    process = start("train", f"--recipe={recipe}", f"--output={run}", output=output, torchrun=True)
    process.join(100)
    process.kill()
    assert process.exitcode == 0, output.read_text()
    assert output.read_text().count("run folder:") == 1
    return run


def start_pair(
    config: TrainConfig, folder: Path, *, command: Callable[[list[str]], int] = main
) -> tuple[Path, list[ForkServerProcess], list[Path]]:
    """Start two processes with what torchrun tells its own; these have the libraries already."""
    recipe, run = recipe_of(config, folder), folder / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    group |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    outputs = [folder / f"{rank}.txt" for rank in range(2)]
    processes = [
        start(
            *("train", f"--recipe={recipe}", f"--output={run}"),
            output=output,
            command=command,
            **group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, output in enumerate(outputs)
    ]
    return run, processes, outputs


def run_pair(config: TrainConfig, folder: Path) -> Path:
    """The run by such a pair."""
    run, processes, outputs = start_pair(config, folder)
    for process in processes:
        process.join(100)
    written = "".join(output.read_text() for output in outputs)
    for process in processes:
        process.kill()  # one that waits for the other
    assert [process.exitcode for process in processes] == [0, 0], written
    assert written.count("run folder:") == 1
    return run


def close(a: dict[str, Tensor], b: dict[str, Tensor], *, rtol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")


@ONE_SERVER
@pytest.mark.parametrize("launch", [run_two, run_by_torchrun])
def test_two_processes_train_as_one(
    tiny: Tiny, tmp_path: Path, weights: Weights, launch: Callable[[TrainConfig, Path], Path]
) -> None:
    """The same global batch gives the same weights and metrics, where no BatchNorm sees a part of it."""
    config = tiny(**PLAIN | NO_BATCHNORM, output=str(tmp_path / "one"))
    one = train(config)
    two = launch(tiny(**PLAIN | NO_BATCHNORM), tmp_path / "two")
    close(weights(two), weights(one), rtol=2e-5)
    for mine, other in zip(rows_of(two), rows_of(one), strict=True):
        for name in ("epoch", "step", "lr", "train_loss", "val_loss", "val_top1_fused"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4), name


@ONE_SERVER
def test_two_processes_in_stages(tiny: Tiny, tmp_path: Path, weights: Weights) -> None:
    """The layers that learn from the second epoch on are those of one process too, so DDP joins theirs."""
    begun = train(tiny(**NO_BATCHNORM, max_steps=1, output=str(tmp_path / "begun")))
    stages = {"freeze_share": 0.5, "unfreeze_lr_scale": 0.5, "lr": 0.01, "layer_decay": 1.0}
    config = tiny(**PLAIN | NO_BATCHNORM | stages, checkpoint=str(begun / "last.safetensors"))
    one = train(config.with_options(output=str(tmp_path / "one")))
    two = run_pair(config, tmp_path / "two")
    close(weights(two), weights(one), rtol=2e-5)
    before, after = weights(begun), weights(two)
    for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight", "head.weight"):
        assert float((after[name] - before[name]).abs().max()) > 1e-4, name


@ONE_SERVER
def test_conformer_in_two_processes(tiny: Tiny, tmp_path: Path, weights: Weights) -> None:
    """Each process's BatchNorm sees its half of the batch, as one process does that takes two passes."""
    one = train(tiny(**PLAIN, accumulate=2, output=str(tmp_path / "one")))
    two = run_pair(tiny(**PLAIN), tmp_path / "two")
    mine, other = weights(two), weights(one)
    statistics = [name for name in mine if "running_" in name or "num_batches" in name]
    for name in statistics:  # of one process's images, or of all
        del mine[name], other[name]
    close(mine, other, rtol=1e-4)
    assert rows_of(two)[-1]["train_loss"] == pytest.approx(rows_of(one)[-1]["train_loss"], rel=1e-3)


@ONE_SERVER
def test_no_step_waits_for_the_other_process_but_for_gradients(tiny: Tiny, tmp_path: Path) -> None:
    """And both compute in the precision that the first one has chosen."""
    config = tiny(**PLAIN | {"epochs": 1, "batch_size": 4, "val_fraction": 0.1, "max_minutes": 60.0})
    run, processes, outputs = start_pair(config, tmp_path / "two", command=main_counted)
    for process in processes:
        process.join(100)
        process.kill()
    for output in outputs:
        assert "counted: ['end'] in bf16-mixed" in output.read_text()
    assert "precision: bf16-mixed\n" in (run / "config.yaml").read_text()


@ONE_SERVER
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_one_line(tiny: Tiny, tmp_path: Path, killed: int) -> None:
    """The other one ends too, and what was saved is kept."""
    config = tiny(**PLAIN | {"epochs": 400, "save_minutes": 1e-9, "batch_size": 4})
    run, processes, outputs = start_pair(config, tmp_path / "two")
    while not (run / "last.ckpt").exists() and all(process.is_alive() for process in processes):
        time.sleep(0.01)
    processes[killed].kill()
    other = processes[1 - killed]
    other.join(60)
    lines = outputs[1 - killed].read_text().splitlines()
    assert other.exitcode == 2, lines
    (line,) = [line for line in lines if "error" in line or "Traceback" in line]
    assert line == f"error: another process of this training has ended; continue with --resume {run}"
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] > 0


def test_how_a_process_has_ended_that_this_one_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert ended([process]) is None
        process.kill()
        process.wait()
        assert ended([process]) == "process 1 of 2 was ended by SIGKILL"
    with subprocess.Popen(["false"]) as process:
        process.wait()
        assert ended([process]) == "process 1 of 2 ended with status 1"
