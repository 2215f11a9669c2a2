"""Options of the run: where it computes, when it ends and saves, what it shows."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.training import TrainConfig, train
from conformer_vision.training import folder as folder_module
from conformer_vision.training.callbacks import Recorder
from conformer_vision.training.folder import RunFolder, claimed
from conformer_vision.training.module import ClassifierModule
from conformer_vision.training.network import Network
from conformer_vision.training.pace import Pace
from conformer_vision.training.precision import where_open
from conformer_vision.training.processes import Processes, count_processes
from conformer_vision.training.progress import build_progress
from conformer_vision.training.schedule import Clock
from conformer_vision.training.trainer import build_trainer
from option_tools import VIT, rows_of, shows

Tiny = Callable[..., TrainConfig]

# ---- where it computes -----------------------------------------------------------------------------


@pytest.fixture
def trainer(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., lightning.Trainer]:
    """The trainer of a configuration, on a machine without accelerators and without a launcher."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda **changes: build_trainer(where_open(tiny(**changes).hardware), epochs=1)


@shows("device")
def test_device(trainer: Callable[..., lightning.Trainer]) -> None:
    assert trainer(device="cpu").strategy.root_device.type == "cpu"
    assert trainer(device="auto").strategy.root_device.type in ("cpu", "mps")
    with pytest.raises(UserError, match="device 'cuda' with devices 1 cannot be used here") as caught:
        trainer(device="cuda")
    assert "\n" not in str(caught.value)


@shows("devices", "nodes")
def test_processes(trainer: Callable[..., lightning.Trainer]) -> None:
    alone = trainer()
    assert (alone.world_size, type(alone.strategy)) == (1, SingleDeviceStrategy)
    two = trainer(devices=2)
    assert (two.world_size, two.num_nodes, type(two.strategy)) == (2, 1, Processes)
    four = trainer(devices=2, nodes=2)
    assert (four.world_size, four.num_nodes, type(four.strategy)) == (4, 2, Processes)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("environment", "by"), [(TORCHRUN, "torchrun"), (SLURM, "SLURM")], ids=["torchrun", "slurm"]
)
def test_launcher_decides(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], by: str
) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert count_processes(tiny().hardware) == (1, 1)
    assert count_processes(tiny(devices=3, nodes=2).hardware) == (3, 2)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert count_processes(tiny().hardware) == (4, 2)
    assert count_processes(tiny(devices=4, nodes=2).hardware) == (4, 2)
    for name, value, there in (("devices", 2, 4), ("nodes", 3, 2), ("devices", 1, 4)):
        with pytest.raises(UserError, match=f"{name} {value}: {by} has started {there}; leave {name} out"):
            count_processes(tiny(**{name: value}).hardware)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"SLURM_NTASKS": "8"},
            "this job has 8 tasks, but srun has not started them: put srun before the command",
        ),
        ({"SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}, "this job has 8 tasks, but srun"),
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "4294967291"},
            "this job has 2 tasks, but srun",
        ),  # sbatch's own
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "interactive"},
            "2 tasks in a job named interactive are taken for separate runs: give srun --job-name=train",
        ),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive"}, None),  # a shell of salloc
        ({"SLURM_NTASKS": "1"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, None),
        ({"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}, None),
    ],
    ids=str,
)
def test_tasks_without_srun(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str | None
) -> None:
    """They would wait for each other for ever, or train the same run several times."""
    for name in ("TORCHELASTIC_RUN_ID", *SLURM, "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train.sh"} | environment).items():
        monkeypatch.setenv(name, value)
    if line is None:
        assert count_processes(tiny().hardware) == (1, 1)
    else:
        with pytest.raises(UserError, match=line):
            count_processes(tiny().hardware)


@shows("sync_bn")
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
def test_what_needs_a_gpu(trainer: Callable[..., lightning.Trainer]) -> None:
    """There its effect is lightning's; here it is refused instead of ignored."""
    with pytest.raises(UserError, match="sync_bn needs GPUs; leave it out on the CPU"):
        trainer(sync_bn=True)
    with pytest.raises(UserError, match="precision 16-mixed needs a GPU; bf16-mixed works on the CPU too"):
        trainer(precision="16-mixed")
    assert trainer(precision="bf16-mixed").precision == "bf16-mixed"


# ---- the folder ------------------------------------------------------------------------------------


@shows("output")
def test_output(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train(tiny(output=str(tmp_path / "a" / "b"), max_steps=1)) == tmp_path / "a" / "b"
    monkeypatch.chdir(tmp_path)
    with claimed(tiny().output, model="conformer_nano_patch8_64") as folder:
        assert re.fullmatch(r"runs/conformer_nano_patch8_64-\d{8}-\d{6}", folder.as_posix())


@shows("auto_resume")
def test_auto_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command begins, goes on after it was killed, and leaves a whole run as it is."""
    run, step, seen = tmp_path / "run", ClassifierModule.training_step, []

    class Killed(BaseException):
        pass

    def dying(self: ClassifierModule, batch: Any, number: int) -> Tensor:
        seen.append(number)
        if len(seen) == 3:
            raise Killed
        return step(self, batch, number)

    monkeypatch.setattr(ClassifierModule, "training_step", dying)
    plain = tiny(**VIT, epochs=1, max_steps=None, save_minutes=1e-9, output=str(run))
    config = plain.with_options(auto_resume=True)
    with pytest.raises(Killed):
        train(config)
    with pytest.raises(UserError, match=f"output {run} is not empty"):
        train(plain)
    assert train(config) == run
    assert seen == [0, 1, 2, 2, 3], "what was done is not done again"
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.suffix == ".safetensors"}
    assert train(config) == run
    assert len(seen) == 5
    assert {name: (run / name).read_bytes() for name in before} == before
    assert "auto_resume: false" in (run / "config.yaml").read_text(), "the kept recipe starts other runs"


# ---- when it ends and saves ------------------------------------------------------------------------


@shows("patience")
def test_patience(tiny: Tiny, tmp_path: Path) -> None:
    """Without a learning rate top-1 never rises after the first epoch."""
    config = tiny(
        **VIT, lr=1e-30, min_lr=0.0, epochs=9, max_steps=None, batch_size=32, patience=2,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    assert [row["epoch"] for row in rows_of(train(config))] == [1, 2, 3]


@shows("save_minutes")
def test_save_minutes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes a minute by the clock; an epoch has four."""
    now, saved, write = [0.0], [], RunFolder._write

    def noting(self: RunFolder, trainer: lightning.Trainer) -> None:
        saved.append(trainer.global_step)
        write(self, trainer)

    step = ClassifierModule.training_step

    def slow(self: ClassifierModule, batch: Any, number: int) -> Tensor:
        now[0] += 60
        return step(self, batch, number)

    monkeypatch.setattr(folder_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(RunFolder, "_write", noting)
    monkeypatch.setattr(ClassifierModule, "training_step", slow)
    train(tiny(**VIT, epochs=2, max_steps=None, save_minutes=2.5, output=str(tmp_path / "run")))
    assert saved == [3, 4, 7, 8]


EPOCHS = [(0.2, 1.0), (0.5, 0.9), (0.5, 0.7), (0.6, 0.8), (0.4, 0.1), (0.5, 0.8)]
"""Top-1 and loss of epochs 1, 2, ...; from the best on: 4, 3, 6, 2, 5, 1."""


@shows("save_top_k")
@pytest.mark.parametrize(("top_k", "kept"), [(0, []), (1, [4]), (3, [3, 4, 6]), (9, [1, 2, 3, 4, 5, 6])])
def test_save_top_k(tmp_path: Path, top_k: int, kept: list[int]) -> None:
    """The folder of a run that is interrupted after every epoch: what is known goes with its state."""
    model = nn.Linear(1, 2)
    recorder = Recorder(Clock(), batch_size=1)
    spec = ModelSpec("resnet18", classes=("a", "b"))
    state: dict[str, Any] | None = None
    for number, (top1, loss) in enumerate(EPOCHS, start=1):
        folder = RunFolder(
            tmp_path, network=Network(model, spec), recorder=recorder, pace=Pace(), top_k=top_k
        )
        if state is not None:
            folder.load_state_dict(state)
        nn.init.constant_(model.weight, number)
        recorder.rows.append(
            {"epoch": number, "step": number, "val_top1_fused": top1, "val_loss": loss}
            | {"train_loss": 1.0, "lr": 1.0, "seconds": 1.0}
        )
        trainer: Any = SimpleNamespace(
            save_checkpoint=lambda path: Path(path).touch(),
            should_stop=False,
            current_epoch=number - 1,
            max_epochs=9,
            is_global_zero=True,
            strategy=SingleDeviceStrategy("cpu"),
        )
        folder.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
        state = folder.state_dict()
    from safetensors.torch import load_file

    files = sorted((tmp_path / "top").glob("*")) if top_k else []
    assert [path.name for path in files] == [f"epoch-{number:04d}.safetensors" for number in kept]
    assert [int(load_file(path)["weight"][0, 0]) for path in files] == kept
    assert load_file(tmp_path / "best.safetensors")["weight"].unique().tolist() == [4]
    assert load_file(tmp_path / "last.safetensors")["weight"].unique().tolist() == [6]


# ---- what it shows ---------------------------------------------------------------------------------


@shows("progress")
def test_progress(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bar of a terminal beside the line of every epoch; test_cli.py has the line alone."""
    train(tiny(progress="rich", epochs=1, max_steps=None, output=str(tmp_path / "run")))
    out = capsys.readouterr().out
    assert re.search(
        r"^epoch 1/1  loss \d\.\d+.* top-1 \d+\.\d% \[\d+\.\d, \d+\.\d\] \(conv .*, trans .*\)", out, re.M
    )
    assert re.search(r"epoch 1/1 .*4/4", out), "the bar"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_follows_the_terminal(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    nothing: Any = None
    shown = build_progress("auto", nothing, nothing, nothing)
    assert any(isinstance(callback, RichProgressBar) for callback in shown) == terminal
