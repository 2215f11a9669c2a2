"""Predict, evaluate, explain and export with a model of several labels per image."""

import csv
import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import one_line, run
from conformer_vision import Predictor, evaluate, explain, load
from conformer_vision.errors import UserError
from conformer_vision.export.run import export
from conformer_vision.inference import save_predictions
from conformer_vision.report.comparing import compare
from conformer_vision.thresholds import ClassThresholds
from conformer_vision.weights import Calibrated, save_calibration
from exports import SPEC, shared_graphs, write_run
from several_labels import Squares

SEVERAL = replace(SPEC, classes=Squares.classes, multilabel=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of which some have no class and others several."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(3)
    paths = [folder / f"{number:02}.png" for number in range(24)]
    for path in paths:
        colour = rng.integers(0, 256, 3)
        noise = rng.integers(-60, 61, (32, 32, 3))
        Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without thresholds."""
    return write_run(tmp_path_factory.mktemp("plain") / "run", SEVERAL)


@pytest.fixture(scope="module")
def wanted(plain: Path, photos: list[Path]) -> torch.Tensor:
    """Probabilities (24, 4): sigmoids of the fused logits at a temperature of 1.6."""
    loaded = load(plain)
    batch = torch.stack([loaded.transform(Image.open(path).convert("RGB")) for path in photos])
    with torch.no_grad():
        return (loaded.model(batch) / 1.6).sigmoid()


@pytest.fixture(scope="module")
def folder(plain: Path, wanted: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model with thresholds that about half of the photos reach."""
    folder = tmp_path_factory.mktemp("several") / "run"
    shutil.copytree(plain, folder)
    values = tuple(round(value, 2) + 0.003 for value in wanted.median(dim=0).values.tolist())
    thresholds = ClassThresholds(values, (9, 5, 7, 0), (32, 32))
    save_calibration(folder / "best.safetensors", Calibrated(1.6, thresholds))
    return folder


def named(row: torch.Tensor, folder: Path) -> list[str]:
    """The classes above their thresholds, the most probable first."""
    thresholds = load(folder).spec.class_thresholds
    order = row.argsort(descending=True).tolist()
    return [Squares.classes[k] for k in order if row[k] >= thresholds[k]]


def test_predict_gives_the_classes_above_their_thresholds(
    folder: Path, photos: list[Path], wanted: torch.Tensor
) -> None:
    found = Predictor(folder)(photos)
    assert {len(each.labels) for each in found} >= {0, 1, 2}, "the test needs them"
    for each, row in zip(found, wanted, strict=True):
        assert list(each.labels) == list(each.present or ()) == named(row, folder)
        shares = dict(zip(Squares.classes, row.tolist(), strict=True))
        assert list(each.probabilities) == pytest.approx([shares[name] for name in each.labels], abs=1e-5)
        assert each.unsure is None and each.conformal_set is None and each.conv is not None
    ranked = Predictor(folder)(photos[:3], top_k=4)
    for each, row in zip(ranked, wanted, strict=False):
        assert each.probabilities == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
        assert len(each.labels) == 4 and list(each.present or ()) == named(row, folder)
    with pytest.raises(UserError, match="top_k 0"):
        Predictor(folder)(photos, top_k=0)


def test_without_thresholds_it_is_a_half(plain: Path, photos: list[Path]) -> None:
    for every, present in zip(Predictor(plain)(photos, top_k=4), Predictor(plain)(photos), strict=True):
        assert present.probabilities == tuple(p for p in every.probabilities if p >= 0.5)


def test_predict_in_all_formats(
    folder: Path, photos: list[Path], wanted: torch.Tensor, tmp_path: Path
) -> None:
    none = next(path for path, row in zip(photos, wanted, strict=True) if not named(row, folder))
    two = next(path for path, row in zip(photos, wanted, strict=True) if len(named(row, folder)) == 2)
    classes = named(wanted[photos.index(two)], folder)
    shares = [f"{name} {wanted[photos.index(two), Squares.classes.index(name)]:.1%}" for name in classes]
    text = run("predict", folder, none, two)
    assert text.out.splitlines() == [f"{none}: no class", f"{two}: {', '.join(shares)}"]
    listed = json.loads(run("predict", folder, none, two, "--json").out)
    assert [each["labels"] for each in listed] == [each["present"] for each in listed] == [[], classes]
    rows = list(csv.DictReader(StringIO(run("predict", folder, none, two, "--csv").out)))
    assert [(row["image"], row["label"], row["present"]) for row in rows] == [
        (str(none), "", "no"),
        *((str(two), name, "yes") for name in classes),
    ]
    rows = list(csv.DictReader(StringIO(run("predict", folder, two, "--csv", "--top_k", "4").out)))
    assert {row["label"]: row["present"] for row in rows} == {
        name: "yes" if name in classes else "no" for name in Squares.classes
    }
    page = tmp_path / "answers.html"
    done = run("predict", folder, none, two, "--page", page)
    assert done.status == 0 and all(name in page.read_text() for name in classes)


@pytest.mark.parametrize(
    "options",
    [("--coverage", "0.9"), ("--conformal", "0.1")],
    ids=str,
)
def test_what_is_for_one_label_per_image_is_one_line(
    folder: Path, photos: list[Path], options: tuple[str, ...]
) -> None:
    done = run("predict", folder, photos[0], *options)
    assert done.status == 2 and "any number" in one_line(done) and options[0] in done.err


def test_evaluate_by_the_command(folder: Path, tmp_path: Path) -> None:
    """Also images with one label each, in folders."""
    images = tmp_path / "images"
    for name, colour in (("red", (220, 30, 30)), ("green", (30, 220, 30)), ("blue", (30, 30, 220))):
        (images / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), colour).save(images / name / f"{number}.png")
    options = ("--data", images, "--split", "all")
    done = run("evaluate", folder, *options)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("mAP, %") for line in lines) and any("CF1" in line for line in lines)
    thresholds = load(folder).spec.class_thresholds
    assert f"thresholds of the classes: from {min(thresholds):.2f} to {max(thresholds):.2f}" in lines
    found = json.loads(run("evaluate", folder, *options, "--json").out)
    assert found["thresholds"] == dict(zip(Squares.classes, thresholds, strict=True))
    assert found["heads"]["fused"]["classes"]["grey"] is None
    assert found["heads"]["fused"]["classes"]["red"]["images"] == 4 and "confusion" not in found
    for other, word in (("--ood", str(images)), ("--conformal", "0.1"), ("--confusion_matrix", "c.png")):
        refused = run("evaluate", folder, *options, other, word if word != "c.png" else tmp_path / word)
        assert refused.status == 2 and other in refused.err.splitlines()[-1], refused.err


def test_the_table_of_answers(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    data = Squares(20)
    found = evaluate(folder, data, split="all", keep_all=True)
    save_predictions(found.answers, found.classes, tmp_path / "answers.parquet")
    table = pq.read_table(tmp_path / "answers.parquet").to_pydict()
    truth = ["|".join(Squares.classes[k] for k in label) for label in data.targets]
    assert table["truth"] == truth and "" in truth and any("|" in each for each in truth)
    thresholds = load(folder).spec.class_thresholds
    answer = [
        "|".join(n for n, t in zip(Squares.classes, thresholds, strict=True) if table[f"fused:{n}"][row] >= t)
        for row in range(20)
    ]
    assert table["answer"] == answer
    assert table["correct"] == [one == other for one, other in zip(truth, answer, strict=True)]


def test_images_of_several_labels_for_a_model_of_one(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", replace(SPEC, classes=Squares.classes))
    with pytest.raises(UserError, match="several labels per image, but the model gives each image one"):
        evaluate(one, Squares(20), split="all")


def test_models_of_several_labels_are_not_compared(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="compare is for models of one"):
        compare(folder, folder, data="digits")


def test_explain_shows_the_classes_that_are_present(
    folder: Path, photos: list[Path], wanted: torch.Tensor
) -> None:
    for found, row in zip(explain(folder, photos[:12]), wanted, strict=False):
        shown = [each.label for each in found.classes]
        best = Squares.classes[int(row.argmax())]
        assert set(shown) == {best, *named(row, folder)} and len(found.maps) == len(shown)
        for each in found.classes:
            share = row[Squares.classes.index(each.label)].item()
            assert each.probabilities["fused"] == pytest.approx(share, abs=1e-5)


def answers(model: Path, photos: list[Path]) -> list[dict[str, Any]]:
    found = Predictor(model)(photos, top_k=10)
    return [
        {"present": each.present, **dict(zip(each.labels, each.probabilities, strict=True))} for each in found
    ]


@pytest.mark.parametrize("format_", ["onnx", "openvino", "hf", "folded"])
@pytest.mark.xdist_group("export")
@pytest.mark.timeout(300)
def test_exports_answer_alike(photos: list[Path], tmp_path: Path, format_: str) -> None:
    """With thresholds and temperature, in whatever file; the weights are those of other tests of exports."""
    values = tuple(0.2 + 0.06 * k for k in range(10))
    thresholds = ClassThresholds(values, (5,) * 10, (32, 32))
    spec = replace(SPEC, multilabel=True, temperature=1.6, thresholds=thresholds)
    run = write_run(tmp_path / "run", spec)
    suffix = {"onnx": ".onnx", "openvino": ".xml", "hf": "", "folded": ".safetensors"}[format_]
    with shared_graphs():
        done = export(run, format=format_, output=tmp_path / f"exported{suffix}")
    assert done.difference.agreement == 1
    expected = answers(run, photos[:8])
    assert len({each["present"] for each in expected}) > 2
    for one, other in zip(answers(done.path, photos[:8]), expected, strict=True):
        assert one.pop("present") == other.pop("present")
        assert one == pytest.approx(other, abs=1e-4)
    if format_ == "hf":
        config = json.loads((done.path / "config.json").read_text())
        assert config["problem_type"] == "multi_label_classification"
