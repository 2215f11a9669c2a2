"""What a run leaves and prints at its end, and that a complete run stays as it is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformer_vision import evaluate
from conformer_vision.data import Splitting
from conformer_vision.data.base import fingerprint
from conformer_vision.errors import UserError
from conformer_vision.inference.intervals import share
from conformer_vision.runs import read_results
from conformer_vision.training import TrainConfig, train
from conformer_vision.training.network import build_network
from conformer_vision.training.progress import epoch_line, opening_lines
from conformer_vision.training.results import by_class, closing_lines, scores
from conformer_vision.training.run import resume
from conformer_vision.weights import load
from option_tools import opened, rows_of, shows
from streamed import write_shards

Tiny = Callable[..., TrainConfig]
STATE = {"optimizer_states", "lr_schedulers", "current_model_state"}


@pytest.fixture(scope="module")
def config(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two epochs of three steps."""
    output = str(tmp_path_factory.mktemp("results") / "run")
    return tiny(epochs=2, max_steps=None, val_fraction=0.25, lr=3e-3, ema_decay=0.5, output=output)


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> Path:
    return train(config)


def test_results_are_those_of_the_best_epoch(run: Path, config: TrainConfig, images: Path) -> None:
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["finished"] is True
    assert (results["model"], results["data"]) == ("conformer_nano_patch8_64", str(images))
    data = opened(config)
    assert results["images"] == {"train": len(data.train_images), "val": len(data.val_images)}
    assert (results["epochs"], results["steps"]) == (2, 6)
    assert results["val_fingerprint"] == fingerprint(data.val_images)
    assert results["initial_weights"] == "none, training from scratch"
    best, rows = results["best"], rows_of(run)
    assert best["top1"]["fused"]["value"] == pytest.approx(
        max(row["val_top1_fused"] for row in rows), abs=1e-4
    )
    assert results["last"]["val_loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-4)
    evaluation = evaluate(run, images, splitting=Splitting(0.25, 0), device="cpu")
    for head, figures in evaluation.heads.items():
        assert best["top1"][head] == pytest.approx(asdict(figures.top1), abs=1e-5)
    counts = best["classes"]
    assert list(counts) == ["blue", "green", "red"]
    assert [each["images"] for each in counts.values()] == np.bincount(data.val_images.labels).tolist()
    correct = sum(each["correct"] for each in counts.values())
    assert correct == round(len(data.val_images) * best["top1"]["fused"]["value"])
    for each in counts.values():
        assert each["recall"] == asdict(share(each["correct"], each["images"]))


def test_a_complete_run_says_so_and_stays_as_it_is(
    run: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*")}
    for again in (
        lambda: resume(run),
        lambda: resume(run / "last.ckpt"),
        lambda: train(config.with_options(auto_resume=True)),
    ):
        assert again() == run
        assert capsys.readouterr().out == f"{run} is complete; nothing is left to train\n"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.rglob("*")} == before


def longer(run: Path) -> None:
    """Ask for one epoch more, in the run's own configuration."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))


@shows("keep_state")
def test_the_optimizers_state_is_dropped_or_kept(
    run: Path, config: TrainConfig, tmp_path: Path, weights: Callable[..., dict[str, torch.Tensor]]
) -> None:
    kept = train(config.with_options(keep_state=True, output=str(tmp_path / "kept")))
    whole, rest = (torch.load(each / "last.ckpt", weights_only=True) for each in (kept, run))
    assert whole.keys() - rest.keys() == STATE
    for each in (kept, run):
        loaded = load(each / "last.ckpt").model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(each).items())
    longer(kept)
    resume(kept)
    assert [row["epoch"] for row in rows_of(kept)] == [1, 2, 3]
    results = read_results(kept)
    assert results is not None
    assert (results["finished"], results["ends"]["epochs"]) == (True, 3)


def test_without_its_state_a_complete_run_gets_no_more_epochs(config: TrainConfig, tmp_path: Path) -> None:
    run = train(config.with_options(epochs=2, max_steps=1, ema_decay=None, output=str(tmp_path / "run")))
    options = run / "config.yaml"
    options.write_text(options.read_text().replace("max_steps: 1", "max_steps: 2"))
    with pytest.raises(UserError, match=r"last\.ckpt is of a complete run without keep_state.*checkpoint='"):
        resume(run)
    assert [row["step"] for row in rows_of(run)] == [1]


def test_a_run_without_readable_results_goes_on(run: Path, tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"finished": true}'):
        (tmp_path / "results.json").write_text(text)
        results = read_results(tmp_path)
        assert results is None or "ends" not in results


# ---- what is printed -------------------------------------------------------------------------------


def result(**best: Any) -> dict[str, Any]:
    top1 = {
        head: {"value": value, "low": value - 0.1, "high": value + 0.2}
        for head, value in (("conv", 0.6), ("trans", 0.5), ("fused", 0.75))
    }
    return {"epochs": 9, "best": {"epoch": 7, "top1": top1} | best}


def test_closing_lines() -> None:
    found = [
        {"images": many, "correct": right, "recall": asdict(share(right, many))}
        for many, right in ((4, 3), (4, 2), (0, 0), (2, 2))
    ]
    counts = by_class(("ant", "bee", "no one", "cat"), found)
    assert counts["weakest_class"] == "bee"
    assert closing_lines(result(**counts)) == [
        "best: top-1 75.0% [65.0, 95.0] (conv 60.0, trans 50.0) in epoch 7 of 9",
        "weakest class: bee, 2 of 4 images right",
    ]
    assert closing_lines(result()) == [
        "best: top-1 75.0% [65.0, 95.0] (conv 60.0, trans 50.0) in epoch 7 of 9"
    ]
    assert closing_lines({"epochs": 9}) == [], "every image of validation is broken"
    assert by_class(("no one",), found[2:3])["weakest_class"] is None


def test_scores_are_json_whatever_the_loss() -> None:
    row = {"epoch": 1, "step": 2, "val_loss": float("nan"), "val_top1_fused": 0.5, "val_top5_fused": 1.0}
    row |= {"val_top1_fused_low": 0.4, "val_top1_fused_high": 0.6}
    assert json.loads(json.dumps(scores(row), allow_nan=False)) == {
        "epoch": 1,
        "step": 2,
        "val_loss": None,
        "top1": {"fused": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "top5": {"fused": {"value": 1.0, "low": None, "high": None}},
    }


def test_the_line_of_an_epoch_fits_a_terminal() -> None:
    row = {
        "epoch": 1,
        "train_loss": 1.5,
        "val_loss": 0.5,
        "lr": 1e-3,
        "images_per_second": 9.0,
        "seconds": 60.0,
    }
    for head, value in (("conv", 0.5), ("trans", 0.25), ("fused", 0.75)):
        row |= {f"val_top1_{head}": value, f"val_top1_{head}_low": 0.2, f"val_top1_{head}_high": 0.9}
    line = epoch_line(row, epochs=20, left=0, short=True)
    assert line == "epoch 1/20  loss 1.500/0.500  top-1 75.0% [20.0, 90.0] (conv 50.0, trans 25.0)"
    line = epoch_line(row | {"epoch": 10}, epochs=300, left=0, short=True)
    assert line.endswith("25.0)") and len(line) == 80
    line = epoch_line(row | {"epoch": 100}, epochs=300, left=0, short=True)
    assert line == "epoch 100/300  loss 1.500/0.500  top-1 75.0% [20.0, 90.0]"
    line = epoch_line(row, epochs=20, left=90, short=False)
    assert line == (
        "epoch 1/20  loss 1.500  val loss 0.500  top-1 75.0% [20.0, 90.0] (conv 50.0, trans 25.0)"
        "  lr 1.0e-03  9 images/s  0:01:00  left 0:01:30"
    )


def test_a_run_says_what_it_does(
    tiny: Tiny, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(epochs=1, max_steps=None, output=str(tmp_path / "run"))
    count = len(opened(config).train_images)
    run = train(config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"data: {images}"
    assert lines[1] == f"images: {count} for training, {36 - count} for validation"
    assert lines.pop(2) == "split: val_fraction 0.1 of each class is for validation, as the data has no split"
    assert lines[2] == "classes: 3 (blue, green, red)"
    assert lines[3].startswith("model: conformer_nano_patch8_64, 0.2 M parameters, 32x32 pixels")
    assert lines[4] == "initial weights: none, training from scratch"
    assert f"output: {run}" in lines[5:]
    names = [line.partition(":")[0].partition(" 1/1")[0] for line in lines[5:]]
    assert names[-4:] == ["time", "epoch", "best", "weakest class"]


def test_a_run_says_where_its_validation_images_come_from(tiny: Tiny, images: Path, tmp_path: Path) -> None:
    def lines(**changes: Any) -> list[str]:
        config = tiny(**changes)
        data = opened(config)
        network = build_network(config.model, config.hardware, data.classes)
        return opening_lines(data, network, weights="", note="")[1:3]

    for part in ("train", "val"):
        shutil.copytree(images, tmp_path / "own" / part)
    assert lines(data=str(tmp_path / "own")) == [
        "images: 36 for training, 36 for validation",
        "split: the data's own",
    ]
    assert lines(folds=3, fold=1)[1] == "split: fold 1 of 3 is for validation"
    assert lines(data=write_shards(tmp_path / "stream", [12, 12])) == [
        "images: a stream for training, a stream for validation",
        "split: val_fraction 0.1 of each class is for validation, as the data has no split",
    ]


def test_long_epochs_print_without_a_bar(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformer_vision.training import progress

    monkeypatch.setattr(progress, "_EVERY_SECONDS", 1e-9)
    monkeypatch.setattr(progress, "_RARELY_SECONDS", 1e-9)
    train(tiny(epochs=2, max_steps=None, accumulate=2, val_fraction=0.25, output=str(tmp_path / "run")))
    within = [line for line in capsys.readouterr().out.splitlines() if "  step " in line]
    wanted = [f"epoch {epoch}/2  step {step}/3" for epoch in (1, 2) for step in (1, 2, 3)]
    del wanted[2]  # there the time is estimated
    assert [line.partition("  loss")[0] for line in within] == wanted
