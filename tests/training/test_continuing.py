"""Continuing a run: what its path may be, that its options are the same, and that it has one writer."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from command_line import MODEL, ONE_SERVER, class_folders, start
from conformer_vision.data.opening import absolute_spec
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.continuing import check_same, run_of
from conformer_vision.training.folder import claimed
from conformer_vision.training.groups import OutputConfig
from conformer_vision.training.recipe import read_config
from conformer_vision.training.run import resume
from option_tools import rows_of

Tiny = Callable[..., TrainConfig]


@pytest.fixture(scope="module")
def begun(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a run that has ended."""
    config = tiny(max_steps=1, layer_decay=0.9, output=str(tmp_path_factory.mktemp("begun") / "run"))
    train(config)
    return config


# ---- the same options ------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "data": "digits",
    "model": "conformer_nano_patch4_32",
    "lr": 0.01,
    "layer_decay": 0.5,
    "epochs": 31,
    "max_steps": None,
    "input_size": 48,
    "batch_size": 4,
    "seed": 1,
    "val_fraction": 0.3,
    "mixup": 0.1,
    "precision": "bf16-mixed",
    "pretrained": True,
    "model_kwargs": {"depths": [2, 2, 2]},
    "augment": {"hflip": 0.0},
    "loggers": "tensorboard",
    "workers": 1,
    "report": True,
}


@pytest.mark.parametrize("name", OTHER)
def test_another_option_is_named_and_refused(begun: TrainConfig, name: str) -> None:
    with pytest.raises(UserError) as caught:
        train(begun.with_options(auto_resume=True, **{name: OTHER[name]}))
    line = str(caught.value)
    assert line.startswith(f"{begun.output.output} was begun with {name}"), line
    assert "\n" not in line
    assert "continue it as it was with resume(" in line


def test_the_same_options_in_other_words(begun: TrainConfig, images: Path) -> None:
    """Also what was left to the run."""
    folder = Path(str(begun.output.output))
    kept = read_config(folder / "config.yaml")
    for changes in (
        {},
        {"lr": None, "crop_pct": None},
        {"input_size": (32, 32), "data": os.path.relpath(images)},
        {"batch_size": "auto", "pretrained": None, "model": None},
        {"progress": "rich", "output": "elsewhere"},
    ):
        check_same(begun.with_options(**changes), kept, folder)
    with pytest.raises(UserError, match=r"lr 0\.5, not 0\.001"):
        check_same(begun.with_options(lr=None), kept.with_options(lr=0.5), folder)


def test_a_run_that_began_from_another_run(begun: TrainConfig, tiny: Tiny, tmp_path: Path) -> None:
    """By its folder, which need not be there any more; the model is that of its weights."""
    other = tmp_path / "other"
    shutil.copytree(str(begun.output.output), other)
    open_ends = {"model": None, "model_kwargs": {}, "pretrained": None, "reset_head": True}
    config = tiny(**open_ends, checkpoint=str(other), max_steps=1, output=str(tmp_path / "run"))
    run = train(config)
    shutil.rmtree(other)
    assert train(config.with_options(auto_resume=True)) == run
    with pytest.raises(UserError, match=r"begun with checkpoint .*other/best"):
        train(config.with_options(auto_resume=True, checkpoint=str(begun.output.output)))


def test_several_differences_are_all_named(begun: TrainConfig) -> None:
    folder = Path(str(begun.output.output))
    kept = read_config(folder / "config.yaml")
    with pytest.raises(UserError, match=r"begun with seed 0, not 3, optimizer adamw, not sgd; give"):
        check_same(begun.with_options(seed=3, optimizer="sgd"), kept, folder)


# ---- paths -----------------------------------------------------------------------------------------


def test_what_means_a_run(begun: TrainConfig) -> None:
    folder = Path(str(begun.output.output))
    for path in (folder, folder / "last.ckpt", folder / "config.yaml", f"{folder}/"):
        assert run_of(path) == folder
    (folder / "last.ckpt").rename(folder / "moved")
    assert run_of(folder / "last.ckpt") == folder, "the folder counts"
    (folder / "moved").rename(folder / "last.ckpt")
    with pytest.raises(UserError, match=r"best\.safetensors has no state to resume from; give its run"):
        run_of(folder / "best.safetensors")
    for path in (folder.parent, folder / "nothing", folder.parent / "last.ckpt"):
        with pytest.raises(UserError, match="is no run to resume"):
            run_of(path)


def test_relative_paths_hold_from_elsewhere(
    tiny: Tiny, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on, and its recipe begins another, from any folder."""
    monkeypatch.chdir(images.parent)
    listed = tmp_path / "exclude.csv"
    listed.write_text(f"image\n{min((images / 'red').iterdir())}\n")
    options = {"data": images.name, "exclude": os.path.relpath(listed), "max_steps": 1, "keep_state": True}
    run = train(tiny(**options, output=str(tmp_path / "run")))
    kept = read_config(run / "config.yaml")
    assert (kept.data.data, kept.data.exclude) == (str(images), str(listed))
    (run / "config.yaml").write_text(kept.with_options(max_steps=2).to_yaml())
    monkeypatch.chdir("/")
    resume(run)
    assert rows_of(run)[-1]["step"] == 2
    train(kept.with_options(output=str(tmp_path / "again")))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("photos", "{here}/photos"),
        ("./digits", "{here}/digits"),
        ("../set.csv", "{above}/set.csv"),
        ("parts/*.parquet", "{here}/parts/*.parquet"),
        ("/data/photos", "/data/photos"),
        ("digits", "digits"),
        ("hfds/beans", "hfds/beans"),
        ("hfds/./local:plain", "hfds/{here}/local:plain"),
        ("torch/cifar10", "torch/cifar10"),
        ("wds/shards/a-{0..3}.tar", "wds/{here}/shards/a-{0..3}.tar"),
        ("wds/https://host/a.tar", "wds/https://host/a.tar"),
        ("dataset/MySet", "dataset/MySet"),
    ],
)
def test_absolute_specs(spec: str, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").mkdir()
    monkeypatch.chdir(tmp_path)
    wanted = wanted.replace("{here}", str(tmp_path)).replace("{above}", str(tmp_path.parent))
    assert absolute_spec(spec) == wanted
    assert absolute_spec("wds/shards", "/sets") == "wds/shards"


# ---- one writer ------------------------------------------------------------------------------------


def test_folders_begun_in_the_same_second_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformer_vision.training import folder as module

    class Frozen(module.datetime):  # type: ignore[misc, name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "datetime", Frozen)

    def claim(number: int) -> Path:
        with claimed(OutputConfig(), model="m") as folder:
            (folder / "last.ckpt").touch()
            return folder

    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(claim, range(8)))
    assert len(set(folders)) == 8
    assert all(folder.name.startswith("m-20260102-030405") for folder in folders)


@ONE_SERVER
def test_two_trainings_of_one_output(tmp_path: Path) -> None:
    """In two processes at once: one trains, the other ends with one line and changes nothing."""
    data, run = class_folders(tmp_path / "data", a=8, b=8), tmp_path / "run"
    command = ["train", f"--data={data}", *MODEL, "--batch_size=4", "--epochs=3", "--workers=0"]
    command += ["--device=cpu", "--report=false", f"--output={run}"]
    outputs = [tmp_path / f"{number}.txt" for number in range(2)]
    processes = [start(*command, output=output) for output in outputs]
    for process in processes:
        process.join(60)
    written = {
        process.exitcode: output.read_text() for process, output in zip(processes, outputs, strict=True)
    }
    assert written.keys() == {0, 2}, written
    line = written[2].splitlines()[-1]
    assert line.startswith("error: ")
    assert "is being written by another training" in line or "is not empty" in line
    assert [row["epoch"] for row in rows_of(run)] == [1, 2, 3]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"] == str(data)
    assert not list(run.glob(".*"))


def status_of_a_claim(output: OutputConfig, folder: Path) -> int:
    """Claim the folder of a run in another process; 3 if that is refused."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 0
    try:
        with claimed(output, model="m", resumed=folder):
            pass
    except UserError as error:
        status = 3 if "is being written by another training" in str(error) else 4
    finally:
        os._exit(status)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has neither fork nor such locks")
def test_a_run_that_is_being_written_is_not_resumed(begun: TrainConfig) -> None:
    folder = Path(str(begun.output.output))
    assert status_of_a_claim(begun.output, folder) == 0
    with claimed(begun.output, model="m", resumed=folder):
        assert status_of_a_claim(begun.output, folder) == 3
    assert status_of_a_claim(begun.output, folder) == 0
    assert (folder / "config.yaml").is_file()
