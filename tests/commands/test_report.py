"""The subcommand report: what it writes, prints and returns."""

import json
from pathlib import Path

import pytest
import timm
import torch

from conformer_vision.commands import report
from conformer_vision.data.base import fingerprint
from conformer_vision.errors import UserError
from conformer_vision.spec import ModelSpec
from conformer_vision.training import TrainConfig
from conformer_vision.weights import save_model
from image_sets import opened, write_folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose data lies in ``moved``."""
    counts = {"train/cat": 1, "train/dog": 1, "val/cat": 3, "val/dog": 3}
    write_folders(tmp_path / "moved", counts, size=(32, 32))
    folder = tmp_path / "run"
    folder.mkdir()
    config = TrainConfig.from_options(data=str(tmp_path / "data"), model="test_resnet")
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=2)
    save_model(model, ModelSpec("test_resnet", {}, ("cat", "dog"), (3, 32, 32)), folder / "best.safetensors")
    return folder


def command(*arguments: object) -> int:
    parser = report.build_parser()
    return report.run(parser.parse_args([str(argument) for argument in arguments]), parser)


def test_writes_the_page_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").write_text("old")
    with pytest.raises(UserError, match="data does not exist"):
        command(run, "--device", "cpu")
    assert command(run, "--data", run.parent / "moved", "--device", "cpu", "--batch_size", 2) == 0
    *numbers, last = capsys.readouterr().out.splitlines()
    assert last == f"report: {run / 'report.html'}"
    assert numbers[0].startswith("top-1 ") and numbers[1].startswith("calibration error ")
    assert "6 validation images" in (run / "report.html").read_text(encoding="utf-8")


def test_other_images_do_not_replace_the_runs_report(run: Path) -> None:
    """Whose fingerprint training has written; the run's own images may lie elsewhere."""
    moved = run.parent / "moved"
    own = fingerprint(opened(moved, split="val"))
    (run / "results.json").write_text(json.dumps({"val_fingerprint": own}))
    assert command(run, "--data", moved, "--device", "cpu") == 0
    before = {path: path.read_bytes() for path in run.iterdir()}
    counts = {"train/cat": 1, "train/dog": 1, "val/cat": 2, "val/dog": 4}
    write_folders(run.parent / "other", counts, size=(32, 32))
    with pytest.raises(UserError, match=r"other holds other validation images than .*evaluate"):
        command(run, "--data", run.parent / "other", "--device", "cpu")
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_numbers_come_out_though_the_run_cannot_be_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*report\.html"):
        command(run, "--data", run.parent / "moved", "--device", "cpu")
    assert "of 6 images" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_exit_status_1(run: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    broken = run.parent / "moved" / "val" / "dog" / "1.png"
    broken.write_bytes(b"no image")
    data = run.parent / "moved"
    assert command(run, "--data", data, "--device", "cpu", "--workers", workers) == 1
    error = capsys.readouterr().err
    assert f"skipped: {broken}: cannot be read" in error
    assert "1 of the images could not be read" in error
    assert str(broken) in (run / "report.html").read_text(encoding="utf-8")
