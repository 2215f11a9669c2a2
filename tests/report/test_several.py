"""The report of a run of several labels per image, and what it stores with the model."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from command_line import run
from conformer_vision import evaluate, load
from conformer_vision.inference.class_thresholds import best_threshold
from conformer_vision.report.build import examine
from conformer_vision.report.several import MultilabelFindings
from conformer_vision.runs import read_run_config
from conformer_vision.thresholds import ClassThresholds
from exports import SPEC, write_run
from several_labels import Squares


def make_run(folder: Path, number: int) -> Path:
    """An untrained run whose validation images are as many."""
    data = Squares(number)
    images = folder / "images"
    images.mkdir()
    with (images / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split"])
        for index in range(number):
            image, label = data[index]
            for split in ("train", "val"):
                image.save(images / f"{split}-{index}.png")
                names = "|".join(data.classes[k] for k in label)
                writer.writerow([f"{split}-{index}.png", names, split])
    written = write_run(folder / "run", replace(SPEC, classes=data.classes, multilabel=True))
    text = f"data: {images / 'labels.csv'}\nlabel_separator: '|'\nval_fraction: 0.1\nseed: 0\n"
    (written / "config.yaml").write_text(text)
    assert read_run_config(written)["label_separator"] == "|"
    return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("several"), 60)


def test_thresholds_and_temperature_are_fitted_and_stored(folder: Path) -> None:
    data = folder.parent / "images" / "labels.csv"
    done = run("report", folder)
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("mAP ") and "of 60 images" in lines[0]
    assert "thresholds of the classes, stored with the model" in lines
    spec = load(folder).spec
    assert isinstance(spec.thresholds, ClassThresholds) and spec.temperature != 1
    found = evaluate(folder, str(data))
    truth = found.answers.labels
    p = found.answers.heads["fused"].probabilities()
    for k in range(4):
        assert spec.thresholds.positives[k] == truth[:, k].sum()
        value = best_threshold(p[:, k].astype(float), truth[:, k])
        assert spec.thresholds.values[k] == pytest.approx(value, abs=1e-5)
    assert found.heads["fused"].class_f1.value > evaluate_at_a_half(p, truth)


def evaluate_at_a_half(p: np.ndarray, truth: np.ndarray) -> float:
    """CF1 at thresholds of one half."""
    said = p >= 0.5
    hits = (said & truth).sum(axis=0)
    precision = (hits / np.maximum(said.sum(axis=0), 1)).mean()
    recall = (hits / truth.sum(axis=0)).mean()
    return float(2 * precision * recall / (precision + recall))


def test_the_page(folder: Path) -> None:
    findings = examine(folder, data=None, device="cpu", batch_size=64, workers=0)
    assert isinstance(findings, MultilabelFindings)
    run("report", folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    figures = findings.evaluation.heads["fused"]
    for metric in findings.evaluation.metrics[:8]:
        assert f"{100 * (figures.of(metric).value or 0):.1f}" in page, metric.title
    for name in (*Squares.classes, "mAP", "CF1", "OF1", "Threshold", "missed", "wrongly given"):
        assert name in page
    assert "<script" not in page
    wrong = [len(each.missed) + len(each.added) for each in findings.worst]
    assert wrong == sorted(wrong, reverse=True) and 0 < len(wrong) <= 24 and wrong[-1] > 0
    counts = np.zeros(4, int)
    for index in range(60):
        counts[list(Squares(60)[index][1])] += 1
    sizes = dict(zip(Squares.classes, counts.tolist(), strict=True))
    assert findings.class_sizes == {"Training": sizes, "Validation": sizes}
    assert f"Training: {counts.sum()} labels" in page and "Drawn evenly from the classes" in page
    shown = [{*each.right, *each.missed} for each in findings.samples]
    assert len(shown) == 4 and set().union(*shown) == set(Squares.classes)


def test_too_few_images_for_thresholds(tmp_path: Path) -> None:
    few = make_run(tmp_path, 20)
    done = run("report", few)
    assert done.status == 0
    assert "20 validation images are too few to fit thresholds (50 are needed)" in done.err
    assert load(few).spec.class_thresholds == (0.5,) * 4
