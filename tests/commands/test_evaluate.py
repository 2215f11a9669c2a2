"""The subcommand evaluate: its options reach `evaluate`, and its exit status says what was skipped."""

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from conformer_vision.commands import evaluate
from conformer_vision.data import fingerprint, open_images
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model
from image_sets import write_folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder beside a folder ``data`` of two classes with eight images each."""
    write_folders(tmp_path / "data", {"cat": 8, "dog": 8}, size=(32, 32))
    (tmp_path / "run").mkdir()
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    spec = ModelSpec("test_resnet", {}, ("cat", "dog"), (3, 32, 32))
    save_model(model, spec, tmp_path / "run" / "best.safetensors")
    return tmp_path / "run"


def command(run: Path, *arguments: object) -> int:
    parser = evaluate.build_parser()
    options = [run, "--data", run.parent / "data", "--device", "cpu", *arguments]
    return evaluate.run(parser.parse_args([str(option) for option in options]), parser)


def test_split_and_exclusions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(run, "--folds", 4, "--fold", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
    (run.parent / "list.csv").write_text(f"image,reason\n{run.parent / 'data' / 'cat' / '5.png'},\n")
    assert command(run, "--split", "all", "--exclude", run.parent / "list.csv", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: sum(row.values()) for name, row in result["confusion"].items()} == {"cat": 7, "dog": 8}


def test_a_share_of_other_images_is_said_to_be_one(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unless it is what the run held out, or all, or a split of the set's own."""
    data = run.parent / "data"
    assert command(run) == 0
    (line,) = caplog.messages
    assert line.startswith(f"{data} has no split of its own: these are the 3 images that ")
    assert "val_fraction" in line and line.endswith(" takes every image")
    own = fingerprint(open_images(str(data), "val"))  # type: ignore[arg-type]
    for known, said in ((own, 1), ("other", 2)):
        (run / "results.json").write_text(json.dumps({"val_fingerprint": known}))
        command(run)
        assert len(caplog.messages) == said
    command(run, "--split", "all")
    for part in ("train", "val"):
        shutil.copytree(data, run.parent / "parts" / part)
    command(run, "--data", run.parent / "parts")
    assert len(caplog.messages) == 2


def test_a_runs_files_stay_as_they_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "curves.png").write_bytes(b"the run's own")
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert command(run) == 0
    with pytest.raises(UserError, match=r"curves\.png is a file of the run itself"):
        command(run, "--confusion_matrix", run / "curves.png")
    for size in (1, 31, "[64,31]"):
        with pytest.raises(UserError, match="each edge must be 32 pixels or more"):
            command(run, "--input_size", size)
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert command(run, "--confusion_matrix", run / "confusion.png", "--input_size", 32) == 0
    assert f"confusion matrix: {run / 'confusion.png'}" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--confusion_matrix", "--predictions"])
def test_nothing_that_is_read_is_written_over(run: Path, option: str) -> None:
    (run / "config.yaml").write_text("seed: 0\n")
    (run / "top").mkdir()
    shutil.copy(run / "best.safetensors", run / "top" / "epoch-0001.safetensors")
    table = run.parent / "table.csv"
    rows = [f"data/{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(8)]
    table.write_text("image,label\n" + "\n".join(rows) + "\n")
    (run.parent / "link.csv").symlink_to(table)
    before = {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}
    for name in ("metrics.csv", "results.json", "report.html", "config.yaml", "folds.csv", "curves.png"):
        for path in (run / name, run / "top" / ".." / name):
            with pytest.raises(UserError, match="is a file of the run itself"):
                command(run, option, path)
    with pytest.raises(UserError, match="is a file of the run itself"):
        command(run, option, run / "top" / "epoch-0001.safetensors")
    for path in (table, run.parent / "link.csv"):
        with pytest.raises(UserError, match=f"{option} .* is read by the same command; give another name"):
            command(run, "--data", table, option, path)
    assert {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()} == before


def test_predictions(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "data" / "dog" / "2.png").write_bytes(b"no image")
    table = run.parent / "answers.csv"
    assert command(run, "--split", "all", "--predictions", table, "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == 15 and f"predictions: {table}" in err
    rows = list(csv.DictReader(table.open(newline="")))
    assert len(rows) == 16 and list(rows[0])[-2:] == ["fused:cat", "fused:dog"]
    assert rows[-1]["image"] == str(run.parent / "data" / "dog" / "2.png")
    assert rows[-1]["truth"] == "dog" and "cannot be read" in rows[-1]["error"]
    right = sum(row["correct"] == "true" for row in rows)
    assert json.loads(out)["heads"]["fused"]["top1"]["value"] == pytest.approx(right / 15)
    with pytest.raises(UserError, match=r"predictions .*answers\.txt: give a name that ends in"):
        command(run, "--predictions", run.parent / "answers.txt")


def test_the_numbers_come_out_though_the_image_cannot_be_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ([], ["--json"]):
        with pytest.raises(UserError, match="cannot write"):
            command(run, "--split", "all", "--confusion_matrix", run / "none" / "confusion.png", *form)
        out = capsys.readouterr().out
        assert json.loads(out)["samples"] == 16 if form else "16 images" in out and " taken for " in out


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a mount of its own")
def test_a_read_only_run(run: Path) -> None:
    """A process for whom the run's file system is read-only, as root needs to see one."""
    arguments = [
        "evaluate",
        str(run),
        "--data",
        str(run.parent / "data"),
        "--split",
        "all",
        "--device",
        "cpu",
    ]
    twice = f"""import sys; from conformer_vision.cli import main; arguments = {arguments}
sys.exit(main(arguments) or main([*arguments, "--confusion_matrix", {str(run / "confusion.png")!r}]))"""
    script = f"""mount --bind {run} {run} && mount -o remount,bind,ro {run} || exit 77
        exec {sys.executable} -c {shlex.quote(twice)}"""
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=100)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no mounts here")
    assert done.returncode == 2
    assert done.stdout.count(" per second") == 2
    line = f"error: cannot write {run / 'confusion.png'}: Read-only file system\n"
    assert done.stderr == line


def test_broken_images_are_exit_status_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "data" / "dog" / "2.png").write_bytes(b"no image")
    assert command(run, "--split", "all") == 1
    out, err = capsys.readouterr()
    assert "15 images" in out and "left out: 1 that could not be read" in out and "ECE" in out
    assert f"skipped: {run.parent / 'data' / 'dog' / '2.png'}: cannot be read" in err
    assert command(run, "--split", "all", "--json") == 1
    assert len(json.loads(capsys.readouterr().out)["broken"]) == 1
