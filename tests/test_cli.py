"""The command ``conformer-vision``: help, recipes, signals, and the main job in real processes."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from command_line import MODEL, ONE_SERVER, TINY, class_folders, run, spawn, start
from conformer_vision.commands import train
from conformer_vision.training.config import AUGMENT_OPTIONS, OPTIONS

# ---- without torch ---------------------------------------------------------------------------------


START = (("-m", "conformer_vision"), ("-c", "import sys, conformer_vision_command as c; sys.exit(c.main())"))
"""How the command starts: by ``python -m``, and as the installed script calls it."""


@pytest.mark.parametrize(
    ("start", "arguments"),
    [(START[0], ["--help"]), (START[1], ["train", "--help"]), (START[1], ["train", "--epoch=3"])],
)
def test_help_and_mistyped_options_do_not_wait_for_torch(
    start: tuple[str, ...], arguments: list[str]
) -> None:
    command = [sys.executable, "-X", "importtime", *start, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments[-1] == "--epoch=3" else 0), done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "conformer_vision.cli" in imported
    assert not imported & {"torch", "timm", "lightning", "sklearn", "matplotlib"}


def test_without_arguments_prints_the_help() -> None:
    done = run()
    assert done.status == 0
    for name in ("check", "lr-find", "train", "report", "evaluate", "predict", "export", "models"):
        assert name in done.out


def flags_shown(*arguments: str) -> tuple[list[str], str]:
    """The flags that a help page lists at the start of a line, and the page."""
    done = run(*arguments)
    assert done.status == 0
    return re.findall(r"^  (?:-h \[all\], )?(--[\w.]+)", done.out, re.M), done.out


def test_train_help_shows_the_most_used_options_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    flags, page = flags_shown("train", "--help")
    assert flags == ["--help", *(f"--{name}" for name in train.MOST_USED)]
    assert len(train.MOST_USED) == 20
    for title in ("Data and batches:", "Model and input:", "Optimizer:", "Schedule:", "Hardware:", "Output:"):
        assert f"\n{title}\n" in page
    assert "'conformer-vision train --help all' shows all options." in page


def test_help_all_describes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    flags, page = flags_shown("train", "--help", "all")
    options = [f"--{name}" for name in OPTIONS if name != "augment"]
    options += [f"--augment.{name}" for name in AUGMENT_OPTIONS]
    assert set(flags) == {"--help", "--recipe", "--resume", "--print_config", *options}
    assert max(map(len, page.splitlines())) <= 80
    for jargon in ("``", "Literal", "type:", "null", "dict[", "tuple", "<class"):
        assert jargon not in page
    assert "Peak learning rate" in page and "(default: 0.05)" in page
    assert "quick" in page, "the bundled recipes"


def test_lr_find_help_shows_its_own_options() -> None:
    assert flags_shown("lr-find", "--help")[0] == [
        "--help",
        "--recipe",
        "--steps",
        "--plot",
        "--data",
        "--model",
    ]
    assert run("lr-find", "--help", "most").err == "error: --help most: give --help, or --help all\n"


# ---- recipes ---------------------------------------------------------------------------------------


def kept(*arguments: str) -> dict[str, object]:
    """The configuration that the command line comes to."""
    import yaml

    done = run("train", *arguments, "--print_config")
    assert done.status == 0, done.err
    values = yaml.safe_load(done.out)
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("order", ["recipe first", "flags first"])
def test_flags_beat_the_recipe(order: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: digits\nepochs: 7\nlr: 1e-4\naugment: {hflip: 0.25, re_prob: 0.5}\n")
    flags = ["--epochs=2", "--augment.hflip=0"]
    values = kept(
        *([f"--recipe={path}", *flags] if order == "recipe first" else [*flags, "--recipe", str(path)])
    )
    assert (values["epochs"], values["lr"], values["data"]) == (2, 1e-4, "digits")
    assert values["augment"]["hflip"] == 0  # type: ignore[index]
    assert values["augment"]["re_prob"] == 0.5  # type: ignore[index]


def test_recipe_by_name_and_dashes_for_underscores() -> None:
    values = kept(
        "--recipe", "quick", "--data", "digits", "--batch-size", "16", "--model-kwargs.drop_rate=0.1"
    )
    assert values["model"] == "conformer_nano_patch8_64"
    assert values["batch_size"] == 16
    assert values["model_kwargs"] == {"drop_rate": 0.1}


def test_off_is_a_word_in_recipes_too(tmp_path: Path) -> None:
    """YAML itself reads a bare off as false."""
    recipe = tmp_path / "recipe.yaml"
    for word in ("off", "cheap", "full"):
        recipe.write_text(f"data: digits\ngrad_checkpointing: {word}\n")
        assert kept(f"--recipe={recipe}")["grad_checkpointing"] == word
        assert kept("--data=digits", f"--grad_checkpointing={word}")["grad_checkpointing"] == word
    recipe.write_text("grad_checkpointing: true\n")
    assert "grad_checkpointing True: must be one of" in run("train", f"--recipe={recipe}").err


def test_kept_recipe_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    done = run("train", "--recipe", trained / "config.yaml", "--output", tmp_path / "again")
    assert (done.status, done.err) == (0, "")
    first, second = (load_file(folder / "last.safetensors") for folder in (trained, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- the main job ----------------------------------------------------------------------------------


def test_evaluate(trained: Path, tmp_path: Path) -> None:
    image = tmp_path / "confusion.png"
    done = run("evaluate", trained, "--data=digits", "--confusion_matrix", image)
    assert (done.status, done.err) == (0, "")
    for word in ("conv", "trans", "fused", "top-1, %", "AUROC", "181 images", " taken for ", str(image)):
        assert word in done.out, word
    assert "top-5" not in done.out, "of ten classes"
    assert max(len(line) for line in done.out.splitlines() if str(image) not in line) <= 80
    Image.open(image).verify()


def test_train_in_a_process_of_its_own(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = spawn("train", "--data=digits", *TINY, "--output", folder)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    words = [line.partition(" ")[0] for line in lines]
    assert words[6:] == ["note:", "device:", "output:", "epoch", "best:", "weakest", "next:", "run"]
    assert lines[9].startswith("epoch 1/30  loss ")
    assert lines[-1] == f"run folder: {folder}"
    first, second = (load_file(path / "last.safetensors") for path in (trained, folder))
    assert all(torch.equal(first[name], second[name]) for name in first), "the same in another process"


@pytest.mark.parametrize(
    ("name", "job", "auto_resume", "asked", "status", "line"),
    [
        ("SIGINT", None, False, False, 130, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", None, True, False, 143, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", "7", False, False, 143, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGINT", "7", True, False, 130, "stopped; continue with: conformer-vision train --resume {run}"),
        ("SIGTERM", "7", True, True, 143, "stopped; requeued job 7"),
        ("SIGTERM", "8", True, True, 143, "stopped; job 8 cannot be requeued"),
    ],
)
def test_stopped_by_a_signal(
    name: str,
    job: str | None,
    auto_resume: bool,
    asked: bool,
    status: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job goes back into the queue where the same command would continue it; not after Ctrl-C."""
    from conformer_vision.training import interrupt
    from conformer_vision.training import run as training_run

    def stop(config: object) -> Path:
        raise interrupt.TrainingInterrupted(tmp_path, number=signal.Signals[name], auto_resume=auto_resume)

    jobs: list[str] = []
    monkeypatch.setattr(training_run, "train", stop)
    monkeypatch.setattr(interrupt, "requeue", lambda job: (jobs.append(job), job == "7")[1])
    for variable in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(variable, raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    done = run("train", "--data=digits")
    assert (done.status, done.out, done.err) == (status, "", line.format(run=tmp_path) + "\n")
    assert jobs == ([job] if asked else [])


@ONE_SERVER
def test_interrupt_and_resume(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", a=20, b=20)
    folder = tmp_path / "run"
    options = ["--batch_size=8", "--epochs=400", "--workers=1", "--device=cpu", f"--output={folder}"]
    options.append("--report=false")
    output = tmp_path / "output.txt"
    process = start("train", f"--data={data}", *MODEL, *options, output=output)
    while process.is_alive() and "\nepoch 1/400" not in (output.read_text() if output.exists() else ""):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the whole group, workers included
    process.join(60)
    written = output.read_text()
    assert process.exitcode == 130, written
    assert written.endswith(f"\nstopped; continue with: conformer-vision train --resume {folder}\n")

    def epochs() -> list[int]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [int(row["epoch"]) for row in csv.DictReader(file)]

    done = len(epochs())
    assert 1 <= done < 400
    assert run("predict", folder / "last.safetensors", data / "a").status == 0

    config = folder / "config.yaml"  # so that the rest takes no minutes
    config.write_text(config.read_text().replace("epochs: 400", f"epochs: {done + 2}"))
    resumed = run("train", "--resume", folder, "--progress=plain")
    assert (resumed.status, resumed.err) == (0, "")
    assert "initial weights: the state in last.ckpt" in resumed.out
    assert re.findall(r"^epoch (\d+)/", resumed.out, re.M) == [str(done + 1), str(done + 2)]
    assert epochs() == list(range(1, done + 3))
