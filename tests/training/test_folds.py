"""All folds in one command: their folders, their going on, and the model that they are."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

import conformer_vision
from command_line import ONE_SERVER, TINY, one_line, run, start
from conformer_vision import Predictor
from conformer_vision.ensemble import write_ensemble
from conformer_vision.errors import UserError
from conformer_vision.inference import evaluate
from conformer_vision.spec import ModelSpec
from conformer_vision.training import TrainConfig
from conformer_vision.training.run import resume, train
from conformer_vision.weights import load
from option_tools import shows

Tiny = Callable[..., TrainConfig]
FOLDS = 3
FITTED = ModelSpec("conformer_nano_patch8_64", classes=("red", "green"))


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three folds."""
    output = tmp_path_factory.mktemp("folds") / "run"
    return train(tiny(folds=FOLDS, fold="all", output=str(output)))


def out_of_fold(folder: Path) -> dict[str, Any]:
    table = pq.read_table(folder / "out_of_fold.parquet").to_pydict()
    assert isinstance(table, dict)
    return table


@shows("fold")
def test_every_fold_is_a_run(whole: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The same, bit for bit, as the fold trained by itself."""
    files = {path.name for path in whole.iterdir()}
    assert files == {f"fold-{fold}" for fold in range(FOLDS)} | {
        *("config.yaml", "classes.txt", "results.json", "ensemble.safetensors", "out_of_fold.parquet")
    }
    alone = train(tiny(folds=FOLDS, fold=1, output=str(tmp_path / "alone")))
    first, second = (load_file(folder / "best.safetensors") for folder in (alone, whole / "fold-1"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_answers_are_those_of_the_fold_that_held_the_image_out(whole: Path, images: Path) -> None:
    table = out_of_fold(whole)
    assert sorted(table["image"]) == sorted(map(str, images.rglob("*.png")))
    assert [Path(name).parent.name for name in table["image"]] == table["truth"]
    for fold in range(FOLDS):
        config = json.loads((whole / f"fold-{fold}" / "results.json").read_text())
        mine = [name for name, own in zip(table["image"], table["fold"], strict=True) if own == fold]
        assert len(mine) == config["images"]["val"]
        model, spec, transform = load(whole / f"fold-{fold}")
        batch = torch.stack([transform(Image.open(name).convert("RGB")) for name in mine])
        with torch.no_grad():
            conv, trans = (logits.softmax(1).numpy() for logits in model.forward_branches(batch))  # type: ignore[operator]
        for head, expected in (("conv", conv), ("trans", trans)):
            stored = np.array([table[f"{head}:{name}"] for name in spec.classes]).T
            rows = [row for row, own in enumerate(table["fold"]) if own == fold]
            np.testing.assert_allclose(stored[rows], expected, atol=1e-4)
    fused = np.array([table[f"fused:{name}"] for name in spec.classes])
    np.testing.assert_allclose(fused.sum(axis=0), 1, atol=1e-5)
    assert [spec.classes[place] for place in fused.argmax(axis=0)] == table["answer"]


def test_mean_deviation_and_pooled_figures(whole: Path) -> None:
    """Those of scikit-learn and of the standard library."""
    results, table = json.loads((whole / "results.json").read_text()), out_of_fold(whole)
    assert results["finished"] and results["images"] == 36
    label, predicted, fold = (np.array(table[name]) for name in ("truth", "answer", "fold"))
    for name, score in (("top1", accuracy_score), ("f1", lambda a, b: f1_score(a, b, average="macro"))):
        single = [float(score(label[fold == k], predicted[fold == k])) for k in range(FOLDS)]
        assert results["mean"]["fused"][name] == pytest.approx(fmean(single))
        assert results["sd"]["fused"][name] == pytest.approx(stdev(single))
        assert [each["fused"][name]["value"] for each in results["folds"]] == pytest.approx(single)
        assert results["out_of_fold"]["fused"][name]["value"] == pytest.approx(score(label, predicted))


def test_the_folder_is_the_ensemble(whole: Path, images: Path) -> None:
    """The mean of the folds' logits, head by head, equals a plain loop bit for bit."""
    model, spec, transform = conformer_vision.load(whole)
    assert (spec.members, spec.classes) == (FOLDS, load(whole / "fold-0").spec.classes)
    paths = sorted(images.rglob("*.png"))[:5]
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    members = [load(whole / f"fold-{fold}").model for fold in range(FOLDS)]
    with torch.no_grad():
        total = torch.zeros(5, 3)
        for member in members:
            total += member(batch)
        assert torch.equal(model(batch), total / FOLDS)
    expected = (total / FOLDS / spec.temperature).softmax(1)
    for prediction, row in zip(Predictor(whole).predict(paths), expected, strict=True):
        assert prediction.probabilities == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)


def test_evaluation_does_not_leak(whole: Path, images: Path, tmp_path: Path) -> None:
    """Own images by the fold that held them out; other images by the ensemble."""
    results = json.loads((whole / "results.json").read_text())
    evaluation = evaluate(whole, str(images))
    assert evaluation.samples == 36
    for head in ("fused", "conv", "trans"):
        assert evaluation.heads[head].top1.value == results["out_of_fold"][head]["top1"]["value"]
        own = results["out_of_fold"][head]["log_loss"]["value"]
        assert evaluation.heads[head].log_loss.value == pytest.approx(own)
    done = run("evaluate", whole, "--data", images, "--split", "all")
    assert "was trained on these images; leave --split out" in one_line(done)
    assert f"give {whole / 'fold-2'}" in one_line(run("evaluate", whole, "--data", images, "--fold", "2"))
    (tmp_path / "other").symlink_to(images)
    model, spec, transform = load(whole)
    paths = sorted(images.rglob("*.png"))
    batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        answers = [spec.classes[place] for place in model(batch).argmax(1).tolist()]
    right = [path.parent.name for path in paths]
    other = evaluate(whole, tmp_path / "other", split="all")
    assert other.heads["fused"].top1.value == pytest.approx(accuracy_score(right, answers))
    (tmp_path / "own").mkdir()
    for split in ("train", "val"):  # validation images of its own, which no fold has touched
        (tmp_path / "own" / split).symlink_to(images)
    assert evaluate(whole, tmp_path / "own").heads["fused"].top1 == other.heads["fused"].top1


def test_what_takes_one_network_says_so(whole: Path, images: Path, tmp_path: Path) -> None:
    image = next(images.rglob("*.png"))
    for arguments in (
        ("explain", whole, image, "--out", tmp_path / "maps"),
        ("report", whole),
        ("compare", whole, whole / "fold-1"),
        ("train", "--data", images, *TINY[1:], "--checkpoint", whole, "--output", tmp_path / "new"),
    ):
        assert str(whole / "fold-0") in one_line(run(*arguments))
    page = tmp_path / "answers.html"
    assert run("predict", whole, image, "--page", page).status == 0
    assert page.stat().st_size > 5000


def test_a_finished_run_trains_nothing(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert resume(whole) == whole
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert f"{whole} is complete; nothing is left to train" in capsys.readouterr().out


def test_an_unfinished_fold_is_one_line(whole: Path, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "fold-0").mkdir(parents=True)
    (folder / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    for command in (("predict", folder, next(images.rglob("*.png"))), ("evaluate", folder, "--data", images)):
        line = one_line(run(*command))
        assert f"not all folds of {folder} are trained; go on with" in line
        assert f"train --resume {folder}" in line


def test_runs_that_make_no_ensemble(whole: Path, tiny: Tiny, images: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("red", "blue"):
        (tmp_path / "two" / name).symlink_to(images / name)
    two = train(tiny(data=str(tmp_path / "two"), output=str(tmp_path / "run")))
    file = tmp_path / "ensemble.safetensors"
    with pytest.raises(UserError, match=r"different classes \(only in fold-0: green\)") as caught:
        write_ensemble([whole / "fold-0", two], file, fitted=FITTED)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere has no weights yet; go on with"):
        write_ensemble([whole / "fold-0", tmp_path / "nowhere"], file, fitted=FITTED)
    grey = train(tiny(in_chans=1, output=str(tmp_path / "grey")))
    with pytest.raises(UserError, match=r"differ in input_size, mean, std"):
        write_ensemble([whole / "fold-0", grey], file, fitted=FITTED)
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fold", "all"], "give the number of folds too"),
        (["--folds", "3", "--fold", "some"], "fold"),
        (["--folds", "3", "--fold", "all", "--devices", "2"], "fold all trains in one process"),
        (["--folds", "30", "--fold", "all"], "folds 30: no class of"),
    ],
)
def test_mistakes(options: list[str], message: str, images: Path, tmp_path: Path) -> None:
    done = run("train", "--data", images, *TINY, *options, "--output", tmp_path / "new" / "run")
    assert message in one_line(done)
    assert not (tmp_path / "new").exists()


def test_auto_resume_refuses_other_options(whole: Path, tiny: Tiny) -> None:
    given = {"folds": FOLDS, "fold": "all", "output": str(whole), "auto_resume": True}
    assert train(tiny(**given)) == whole
    with pytest.raises(UserError, match=r"was begun with folds 3, not 4"):
        train(tiny(**given | {"folds": 4}))


@ONE_SERVER
def test_a_killed_run_goes_on_in_its_fold(whole: Path, images: Path, tmp_path: Path) -> None:
    """kill -9 in the second fold: the same command ends as if nothing had happened."""
    folder, output = tmp_path / "run", tmp_path / "out.txt"
    command = ["train", "--data", str(images), *TINY, "--folds", "3", "--fold", "all"]
    command += ["--output", str(folder), "--auto_resume", "true", "--save_minutes", "0.00001"]
    command += ["--pretrained=false"]
    process = start(*command, output=output)
    deadline = time.monotonic() + 90
    while not (folder / "fold-1" / "last.ckpt").is_file():
        assert process.is_alive() and time.monotonic() < deadline, output.read_text()
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert not (folder / "results.json").exists()
    first = (folder / "fold-0" / "best.safetensors").stat().st_mtime_ns
    done = run(*command)
    assert done.status == 0, done.err
    assert "fold 0 of 3 is complete" in done.out and "the state in last.ckpt" in done.out
    assert (folder / "fold-0" / "best.safetensors").stat().st_mtime_ns == first
    one, other = (load_file(each / "ensemble.safetensors") for each in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert out_of_fold(folder) == out_of_fold(whole)
