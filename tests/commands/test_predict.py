"""The subcommand predict: models and images, formats, terminals, pipes, Ctrl-C."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from rich.cells import cell_len
from skimage import data

from command_line import COMMAND, ENVIRONMENT, ONE_SERVER, class_folders, one_line, run, start
from conformer_vision.cli import main
from conformer_vision.models import variants
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

CLASSES = ("猫", "собака", "naïve goldfish 🐟")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose classes no single console but a UTF-8 one can show."""
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(CLASSES))
    save_model(network, ModelSpec("test_resnet", {}, CLASSES, (3, 32, 32)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images with long paths, of which the fifth is broken."""
    root = tmp_path_factory.mktemp("images of a study that has a long name") / "the folder of one class"
    class_folders(root.parent, **{root.name: 9})
    (root / "4.png").write_bytes(b"no image")
    return root


# ---- what is the model -----------------------------------------------------------------------------


def test_with_the_bundled_weights(images: Path, tmp_path: Path) -> None:
    """Images alone, one folder, or the name of the weights: the same answers, from any folder."""
    image = sorted(images.iterdir())[1]
    alone = run("predict", image, "--csv")
    assert alone.status == 0
    assert variants.SHIPPED in alone.err
    assert len({row["label"] for row in csv.DictReader(io.StringIO(alone.out))}) == 3
    named = run("predict", variants.SHIPPED, image, "--csv")
    assert (named.status, named.out) == (0, alone.out)
    assert alone.err.endswith(named.err) and variants.SHIPPED not in named.err
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / image.name).write_bytes(image.read_bytes())
    folder = run("predict", tmp_path / "one", "--csv")
    assert folder.out.replace(str(tmp_path / "one"), str(images)) == alone.out
    missing = run("predict", tmp_path / "missing.png", "--csv")
    assert missing.status == 1
    assert "missing.png" in missing.err


def test_the_model_is_the_first_name_or_an_option(model: Path, folder: Path) -> None:
    first = run("predict", model, folder)
    assert (first.status, first.err.count("\n")) == (1, 2)
    for arguments in (["--model", model, folder], [folder, f"--model={model}"], [folder, "--model", model]):
        assert run("predict", *arguments) == first


FILES = ("best.safetensors", "last.ckpt", "conformer.pth", "model.onnx")


@pytest.mark.parametrize("name", [*FILES, "resnet18", ""])
def test_a_model_among_the_images_is_an_error(name: str, model: Path, folder: Path, tmp_path: Path) -> None:
    """Also a run folder (the empty name), which holds images of its own."""
    (tmp_path / "config.yaml").write_text("data: photos\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "curves.png")
    for file in FILES:
        (tmp_path / file).write_bytes(model.read_bytes())
    other = name if name == "resnet18" else str(tmp_path / name)
    line = one_line(run("predict", folder / "1.png", other))
    assert f"{other} is a model, not an image; give it first, or with --model" in line
    line = one_line(run("predict", folder / "1.png", other, "--model", model))
    assert f"{other} is a model, not an image; the model here is {model}" in line
    assert f"the model here is {model}" in one_line(run("predict", model, other, folder / "1.png"))


# ---- what is printed -------------------------------------------------------------------------------


def test_plain_lines_in_a_pipe(model: Path, folder: Path) -> None:
    done = run("predict", model, folder, "--top_k=2")
    assert done.status == 1
    assert done.err.splitlines()[0].startswith(f"skipped: {folder}/4.png: ")
    assert done.err.splitlines()[1] == "1 of the images could not be read"
    names, answers = zip(*(line.split(": ") for line in done.out.splitlines()), strict=True)
    assert names == tuple(f"{folder}/{number}.png" for number in (0, 1, 2, 3, 5, 6, 7, 8))
    assert all(len(answer.split(", ")) == 2 and answer.endswith("%") for answer in answers)


def test_csv(model: Path, folder: Path) -> None:
    done = run("predict", model, folder / "4.png", folder / "5.png", "--csv", "--top_k=99")
    assert done.status == 1
    broken, *rows = csv.DictReader(io.StringIO(done.out))
    assert (
        broken["image"] == f"{folder}/4.png" and f"{folder}/4.png" in broken["error"] and not broken["rank"]
    )
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["label"] for row in rows} == set(CLASSES)
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1)


def test_json_and_json_lines(model: Path, folder: Path) -> None:
    done = run("predict", model, folder, "--json")
    assert done.status == 1
    answers = json.loads(done.out)
    assert [answer["error"] is None for answer in answers] == [number != 4 for number in range(9)]
    assert set(answers[0]["labels"]) == set(CLASSES)
    lines = run("predict", model, folder, "--jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == answers
    assert "--json and --csv exclude each other" in one_line(run("predict", model, folder, "--json", "--csv"))


class Terminal(io.StringIO):
    """Stands in for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_terminal_gets_columns_that_fit(
    columns: int, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["predict", str(model), str(folder)]) == 1
    lines = terminal.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= columns
    starts = [line for line in lines if line[0] != " "]
    assert [line.split(".png  ")[0][-1] for line in starts] == list("01235678"), "the names of the files stay"
    assert all(name in terminal.getvalue() for name in CLASSES)
    assert (len(lines) > len(starts)) == (columns < 100), "answers without room go below"


def test_a_console_without_unicode(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {}
    for name, errors in (("stdout", "strict"), ("stderr", "backslashreplace")):
        written[name] = io.BytesIO()
        stream = io.TextIOWrapper(written[name], encoding="cp1252", errors=errors, write_through=True)
        monkeypatch.setattr(sys, name, stream)
    arguments = ["predict", model, folder / "1.png", folder / "4.png", "--device=cpu", "--json"]
    status = main([str(argument) for argument in arguments])
    assert (status, written["stderr"].getvalue().count(b"\n")) == (1, 2)
    assert set(json.loads(written["stdout"].getvalue().decode("cp1252"))[0]["labels"]) == set(CLASSES)


# ---- what is unsure, sets of classes, views ----------------------------------------------------------


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A photo that the bundled weights know, and one of a thing that they do not know."""
    root = tmp_path_factory.mktemp("photos")
    for name, photo in (("coffee", data.coffee()), ("wall", data.brick())):
        Image.fromarray(photo).convert("RGB").resize((90, 90)).save(root / f"{name}.png")
    return [str(root / "coffee.png"), str(root / "wall.png")]


def test_every_format_says_unsure(unknown: list[str], tmp_path: Path) -> None:
    reason = "unlike the training images; the two heads disagree"
    coffee, wall = run("predict", *unknown, "--top_k=1").out.splitlines()
    assert coffee.startswith(f"{unknown[0]}: espresso ")
    assert wall.startswith(f"{unknown[1]}: unsure: {reason.replace('; ', ', ')}, king penguin ")
    done = run("predict", *unknown, "--json", "--page", tmp_path / "answers.html")
    assert [answer["unsure"] for answer in json.loads(done.out)] == [None, reason]
    assert "unsure: 1 of 2 answers" in done.err
    assert f"unsure: {reason}" in (tmp_path / "answers.html").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(run("predict", *unknown, "--csv", "--top_k=2").out)))
    assert [row["unsure"] for row in rows] == ["", "", reason, reason]
    bare = run("predict", *unknown, "--no-reject")
    assert "unsure" not in bare.out + bare.err


def test_sets_and_views(unknown: list[str]) -> None:
    line = run("predict", unknown[1], "--top_k=1", "--conformal=0.05").out
    assert re.search(r", set of \d+: king penguin, ", line)
    rows = list(csv.DictReader(io.StringIO(run("predict", unknown[1], "--csv", "--conformal", "0.2").out)))
    assert rows[0]["in_set"] == "yes" and {row["in_set"] for row in rows} <= {"yes", "no"}
    views = run("predict", unknown[0], "--tta", "flip+scales")
    assert "test-time augmentation: 6 forward passes per image, 6.1 times the pixels" in views.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--conformal=0"], "conformal 0.0: must be between 0 and 1, both excluded"),
        (["--conformal=1"], "conformal 1.0: must be between 0 and 1"),
        (["--conformal=nan"], "--conformal nan: must be a number"),
        (["--conformal=few"], "--conformal few: must be a number"),
        (["--conformal=0.0001"], "500 validation images tell no error rate below 0.002"),
        (["--conformal=0.1", "--tta=flip"], "--conformal 0.1 holds for a single look at each image"),
        (["--coverage=2"], "coverage 2.0: must be between 0 and 1"),
        (["--coverage=0.9", "--no-reject"], "--coverage 0.9 is for rejecting answers"),
        (["--tta=turn"], "tta 'turn': give flip, scales, flip+scales or scales=0.8,1,1.25"),
        (["--tta=scales=0.1"], "cannot take 7x7, a scale of 72x72 (each edge must be 32 pixels or more)"),
    ],
    ids=str,
)
def test_what_cannot_be(arguments: list[str], message: str, unknown: list[str]) -> None:
    assert message in one_line(run("predict", unknown[0], *arguments))


def test_a_model_without_thresholds(model: Path, folder: Path) -> None:
    """It predicts as before; what needs thresholds is one line."""
    done = run("predict", model, folder / "1.png")
    assert (done.status, done.err) == (0, "") and "unsure" not in done.out
    for arguments in (["--coverage=0.9"], ["--conformal=0.1"]):
        line = one_line(run("predict", model, folder / "1.png", *arguments))
        assert f"{model} has no thresholds; 'conformer-vision report RUN' fits those of a run" in line


# ---- as processes ----------------------------------------------------------------------------------


def test_a_reader_that_has_enough(model: Path, folder: Path) -> None:
    images = [str(folder / "1.png")] * 3000
    command = [*COMMAND, "predict", str(model), *images, "--batch_size=1", "--device=cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout as out:
        assert out.readline().startswith(os.fsencode(images[0]))
    with process.stderr as err:
        assert (process.wait(100), err.read()) == (0, b"")


@ONE_SERVER
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize(
    ("number", "form"),
    [(signal.SIGINT, "json"), (signal.SIGTERM, "json"), (signal.SIGTERM, "csv")],
    ids=str,
)
def test_a_signal_keeps_the_answers_so_far(
    number: signal.Signals, form: str, model: Path, folder: Path, tmp_path: Path
) -> None:
    images, output = [folder / "1.png"] * 3000, tmp_path / "output.txt"
    process = start("predict", model, *images, "--batch_size=1", "--device=cpu", f"--{form}", output=output)
    while process.is_alive() and (not output.exists() or output.read_text().count("\n") < 2):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    answers, stopped, end = re.split(r"(stopped .*\n)", output.read_text())  # of both streams
    if form == "json":
        count = len(json.loads(answers + end))
    else:
        rows = list(csv.reader(answers.splitlines()))
        assert {len(row) for row in rows} == {8} and answers.endswith("\n")
        count = sum(row[1] == "1" for row in rows)
        assert len(rows) == 1 + 3 * count
    assert 0 < count < 3000
    assert stopped == f"stopped after {count:,} of 3,000 images\n"
