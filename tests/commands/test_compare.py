"""The subcommand compare: which images it takes, what it says of them, and the page."""

import json
from dataclasses import replace
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from conformer_vision.commands import compare
from conformer_vision.errors import UserError
from conformer_vision.inference import evaluate
from conformer_vision.inference.comparison import contrast, paired_test, renumbered, turns
from conformer_vision.inference.intervals import Resamples
from conformer_vision.runs import mark_config
from conformer_vision.spec import ModelSpec
from exports import write_run
from image_sets import write_folders
from pages import Page

CLASSES = ("ant", "bee", "cat")
SPEC = ModelSpec("test_resnet", {}, CLASSES, (3, 32, 32))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(
        tmp_path_factory.mktemp("data") / "images", dict.fromkeys(CLASSES, 20), size=(40, 40)
    )


def make(folder: Path, data: Path | None, spec: ModelSpec = SPEC, **options: Any) -> Path:
    """A run folder with two epochs of curves; its weights are those of a fixed seed."""
    run = write_run(folder, spec)
    if data is not None:
        values = {"data": str(data), "val_fraction": 0.5, "seed": 0, "lr": 0.001} | options
        text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in values.items())
        (run / "config.yaml").write_text(mark_config(text))
        (run / "metrics.csv").write_text("epoch,val_loss,val_top1_fused\n1,1.5,0.4\n2,1.25,0.5\n")
    return run


@pytest.fixture
def runs(tmp_path: Path, data: Path) -> tuple[Path, Path]:
    """A and B, of the same data; B is another network whose classes have another order."""
    other = replace(SPEC, model="test_efficientnet")
    a = make(tmp_path / "a", data)
    b = make(tmp_path / "b", data, replace(other, classes=("cat", "ant", "bee")), lr=0.01)
    (a / "results.json").write_text('{"finished": true, "epochs": 2, "ends": {"epochs": 2}}')
    (b / "results.json").write_text('{"finished": false, "epochs": 2, "ends": {"epochs": 30}}')
    return a, b


def command(*arguments: object) -> int:
    parser = compare.build_parser()
    return compare.run(parser.parse_args([*map(str, arguments), "--device", "cpu"]), parser)


def test_all_that_is_said(
    runs: tuple[Path, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs
    assert command(a, b, "--page", tmp_path / "c.html") == 0
    text = capsys.readouterr().out
    assert max(map(len, (line for line in text.splitlines() if str(tmp_path) not in line))) <= 110
    assert command(a, b, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    first, second = (evaluate(run, data, device="cpu") for run in runs)
    assert found["images"] == first.samples == second.samples
    assert found["heads"]["fused"]["a"]["top1"]["value"] == first.heads["fused"].top1.value
    assert found["heads"]["fused"]["b"]["f1"]["value"] == pytest.approx(second.heads["fused"].f1.value)
    assert found["options"] == {"lr": [0.001, 0.01]}
    assert any("b is unfinished: epoch 2 of 30" in note for note in found["notes"])
    by_name = [dict(zip(e.answers.names, range(e.samples), strict=True)) for e in (first, second)]
    right = [
        {name: bool(e.answers.heads["fused"].rank[row] == 0) for name, row in rows.items()}
        for e, rows in zip((first, second), by_name, strict=True)
    ]
    lost = {name for name in right[0] if right[0][name] and not right[1][name]}
    won = {name for name in right[0] if right[1][name] and not right[0][name]}
    assert lost and won
    assert {turn["name"] for turn in found["lost"]} == lost
    assert {turn["name"] for turn in found["won"]} == won
    for turn in found["lost"]:
        assert Path(turn["name"]).parent.name == turn["truth"] == turn["a"] != turn["b"]
    test = found["test"]
    assert (test["only_a"], test["only_b"]) == (len(lost), len(won))
    assert f"only A {len(lost)}, only B {len(won)}" in text and "lr" in text and "B - A" in text
    page = Page(tmp_path / "c.html")
    page.check_complete()
    assert page.tags["svg"] == 2
    assert page.tags["img"] == len(lost) + len(won), "fewer than are shown at most"
    assert "lr 0.001 0.01" in page.text and "b is unfinished" in page.text


def test_the_same_run_twice(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(runs[0], runs[0], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] == {} and found["lost"] == found["won"] == []
    assert found["test"]["p"] == 1
    for difference in found["heads"]["fused"]["difference"].values():
        assert difference == {"value": 0.0, "low": None, "high": None}


def test_images_that_both_hold_out(
    runs: tuple[Path, Path], tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = runs[0]
    other = make(tmp_path / "seed", data, seed=3)
    assert command(a, other, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    held_out = [set(evaluate(run, data, device="cpu").answers.names) for run in (a, other)]
    assert found["images"] == len(held_out[0] & held_out[1]) < len(held_out[0])
    assert any("hold out different images" in note for note in found["notes"])
    folds = [make(tmp_path / f"fold{fold}", data, folds=2, fold=fold) for fold in (0, 1)]
    with pytest.raises(UserError, match="was trained on what the other holds out; give images"):
        command(*folds)


def test_weights_without_a_run(
    runs: tuple[Path, Path], tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make(tmp_path / "bare", None) / "best.safetensors"
    assert command(bare, runs[1], "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"] is None and found["images"] == evaluate(runs[1], data, device="cpu").samples
    assert any("does not say what it was trained on" in note for note in found["notes"])
    assert command(bare, runs[1]) == 0
    assert "changed options: unknown" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"neither .* says what it was trained on; give "):
        command(bare, bare)
    assert command(runs[0] / "best.safetensors", runs[1], "--json") == 0, "weights in their run folder"
    assert json.loads(capsys.readouterr().out)["options"] == {"lr": [0.001, 0.01]}


def test_mistakes(runs: tuple[Path, Path], tmp_path: Path, data: Path) -> None:
    a, b = runs
    other = make(tmp_path / "other", data, replace(SPEC, classes=("ant", "bee", "dog")))
    with pytest.raises(UserError, match=r"know different classes .*a knows cat; only .*other knows dog"):
        command(a, other)
    elsewhere = make(tmp_path / "elsewhere", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"was trained on .* and .* on .*; give images that neither"):
        command(a, elsewhere)
    with pytest.raises(UserError, match="is a file of the run itself"):
        command(a, b, "--page", b / "report.html")
    with pytest.raises(UserError, match="does not exist"):
        command(a, tmp_path / "gone")


# ---- statistics ------------------------------------------------------------------------------------


def test_the_difference_is_that_of_paired_resamples(
    runs: tuple[Path, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conformer_vision.inference.intervals.RESAMPLES", 50)
    a, b = (evaluate(run, data, device="cpu").answers for run in runs)
    b = renumbered(b, ("cat", "ant", "bee"), CLASSES)
    assert a.names == b.names and a.labels.tolist() == b.labels.tolist()
    found = contrast(a, b, CLASSES)["fused"].difference
    first, second = (each.heads["fused"].predicted for each in (a, b))
    top1, f1 = [], []
    for weights in Resamples(len(a.labels), classes=3):
        for column in weights.T:
            rows = np.repeat(np.arange(len(a.labels)), column.astype(int))
            truth = a.labels[rows]
            top1.append((second[rows] == truth).mean() - (first[rows] == truth).mean())
            scores = [
                f1_score(truth, p[rows], labels=np.unique(truth), average="macro", zero_division=0)
                for p in (first, second)
            ]
            f1.append(scores[1] - scores[0])
    for name, samples in (("top1", top1), ("f1", f1)):
        bounds = np.quantile(samples, [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(tuple(bounds), abs=1e-6)


def test_mcnemar_is_the_binomial_test_of_those_that_differ(runs: tuple[Path, Path], data: Path) -> None:
    a, b = (evaluate(run, data, device="cpu").answers for run in runs)
    b = renumbered(b, ("cat", "ant", "bee"), CLASSES)
    found = paired_test(a, b)
    right = [each.heads["fused"].rank == 0 for each in (a, b)]
    n, k = int((right[0] != right[1]).sum()), int((right[0] & ~right[1]).sum())
    extreme = sum(comb(n, i) for i in range(n + 1) if comb(n, i) <= comb(n, k)) / 2**n
    assert found.p == pytest.approx(extreme)
    assert found.both + found.only_a + found.only_b + found.neither == len(a.labels)
    lost, won = turns(a, b, CLASSES)
    assert (len(lost), len(won)) == (found.only_a, found.only_b)
    alone = replace(a, groups=[str(row) for row in range(len(a.labels))])
    assert found.groups is None and paired_test(alone, b).groups == len(a.labels)
    assert paired_test(alone, b).p == pytest.approx(extreme, abs=0.02), "a group of one image is an image"


def test_images_of_a_group_change_sides_together(runs: tuple[Path, Path], data: Path) -> None:
    """The exact test by its definition: all signs of the groups' surpluses."""
    a, b = (evaluate(run, data, device="cpu").answers for run in runs)
    b = renumbered(b, ("cat", "ant", "bee"), CLASSES)
    right = [each.heads["fused"].rank == 0 for each in (a, b)]
    groups = [f"patient {row % 7}" for row in range(len(a.labels))]
    surplus = [
        sum(int(right[1][row]) - int(right[0][row]) for row, name in enumerate(groups) if name == group)
        for group in sorted(set(groups))
    ]
    sums = [
        abs(sum(sign * each for sign, each in zip(signs, surplus, strict=True)))
        for signs in product((-1, 1), repeat=7)
    ]
    found = paired_test(replace(a, groups=groups), b)
    assert found.groups == 7
    assert found.p == pytest.approx(sum(each >= abs(sum(surplus)) for each in sums) / len(sums))
    one = paired_test(replace(a, groups=["the same"] * len(groups)), b)
    assert one.p == 1, "a single group tells nothing"
