"""Confident learning against a literal formulation, and on sets whose wrong labels are known."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from command_line import one_line, run
from conformer_vision.data.exclude import read_exclusions
from conformer_vision.errors import UserError
from conformer_vision.inference.label_errors import (
    confident_joint,
    estimated_joint,
    find_label_errors,
    prune_by_noise_rate,
)

Array = Any


def made(seed: int, *, images: int = 400, classes: int = 4, flipped: float = 0.1, sharp: float = 4.0) -> Any:
    """Labels of which some are wrong, probabilities of a network that knows better, and the wrong ones."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, images)
    wrong = rng.random(images) < flipped
    labels = np.where(wrong, (true + rng.integers(1, classes, images)) % classes, true)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), true] += sharp
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities, np.flatnonzero(wrong)


def literal(labels: Array, p: Array) -> tuple[Array, Array, list[int]]:
    """The paper's section 3, word by word: equations 1 to 3, and pruning method 4."""
    n, m = p.shape
    of = [[x for x in range(n) if labels[x] == i] for i in range(m)]
    t = [sum(p[x][j] for x in of[j]) / len(of[j]) if of[j] else float("inf") for j in range(m)]
    c = [[0] * m for _ in range(m)]
    for i in range(m):
        for x in of[i]:
            sure = [j for j in range(m) if p[x][j] >= t[j]]
            if sure:
                c[i][max(sure, key=lambda j: p[x][j])] += 1
    q = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            q[i][j] = c[i][j] / sum(c[i]) * len(of[i]) / n if sum(c[i]) else (i == j) * len(of[i]) / n
    pruned: set[int] = set()
    for i in range(m):
        for j in range(m):
            if i != j:
                ordered = sorted(of[i], key=lambda x: p[x][j] - p[x][i], reverse=True)
                pruned.update(ordered[: round(n * q[i][j])])
    return np.array(c), q, sorted(x for x in pruned if max(range(m), key=lambda j: p[x][j]) != labels[x])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sharp", [0.5, 2.0, 5.0])
def test_the_published_rule(seed: int, sharp: float) -> None:
    labels, probabilities, _ = made(seed, images=150, classes=2 + seed % 4, sharp=sharp)
    joint, share, rows = literal(labels, probabilities)
    assert (confident_joint(labels, probabilities) == joint).all()
    estimated = estimated_joint(labels, probabilities)
    np.testing.assert_allclose(estimated, share, atol=1e-12)
    assert estimated.sum() == pytest.approx(1)
    assert prune_by_noise_rate(labels, probabilities, estimated).tolist() == rows


def test_a_class_without_images_and_one_of_which_nothing_is_sure() -> None:
    labels, probabilities = np.array([0, 0, 1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]])
    joint = estimated_joint(labels, probabilities)
    assert joint.sum() == pytest.approx(1) and joint[2].tolist() == [0, 0, 0]
    low = np.array([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05], [0.2, 0.4, 0.4]])
    low[2, 1] = 0.4
    assert np.trace(estimated_joint(labels, low)) == pytest.approx(1)


def test_known_errors_are_found() -> None:
    labels, probabilities, wrong = made(0, images=3000, classes=10, flipped=0.05, sharp=7.0)
    rows = prune_by_noise_rate(labels, probabilities, estimated_joint(labels, probabilities))
    right = len(np.intersect1d(rows, wrong))
    assert right / len(rows) > 0.9 and right / len(wrong) > 0.9


def test_right_labels_are_left_alone() -> None:
    labels, probabilities, wrong = made(0, flipped=0.0, sharp=30.0)
    assert not len(wrong)
    joint = estimated_joint(labels, probabilities)
    assert not len(prune_by_noise_rate(labels, probabilities, joint))
    assert np.trace(joint) == pytest.approx(1)


NAMES = ["cat", "dög", "<b>x"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of folds with out-of-fold answers to 60 images, of which six have another label."""
    rng = np.random.default_rng(0)
    files, labels = [], []
    for number in range(60):
        true, given = number % 3, number % 3 if number % 10 else (number + 1) % 3
        path = tmp_path / "set" / NAMES[given].strip("<>") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (80 * true, 20, 4 * number)).save(path)
        files.append(str(path))
        labels.append(given)
    names = sorted({Path(file).parent.name for file in files})
    probabilities = np.full((60, 3), 0.03) + rng.random((60, 3)) / 100
    for number, file in enumerate(files):
        truth = NAMES[number % 3].strip("<>")
        assert Path(file).parent.name == truth or number % 10 == 0
        probabilities[number, names.index(truth)] = 0.9
    columns: dict[str, Any] = {"image": files, "truth": [Path(file).parent.name for file in files]}
    columns |= {
        f"fused:{name}": probabilities[:, place].astype(np.float32) for place, name in enumerate(names)
    }
    columns["error"] = pa.nulls(60, pa.string())
    (tmp_path / "run").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "run" / "out_of_fold.parquet")
    config = f"# A run of conformer-vision\ndata: {tmp_path / 'set'}\nfolds: 3\nfold: all\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    return tmp_path / "run"


def wrong_ones(folder: Path) -> set[str]:
    return {str(path) for path in (folder.parent / "set").rglob("*0.png")}


def test_the_command(folder: Path, tmp_path: Path) -> None:
    fix = tmp_path / "fix.csv"
    done = run("labels", folder, "--fix", fix)
    assert (done.status, done.err) == (1, "")
    assert done.out.startswith("6 of 60 labels may be wrong; 10.0% by estimate\n")
    assert all(len(line) <= 80 or str(tmp_path) in line for line in done.out.splitlines())
    with open(folder / "label_errors.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "suggested", "score"]
    assert {row["image"] for row in rows} == wrong_ones(folder) == read_exclusions(fix)
    assert read_exclusions(folder / "label_errors.csv") == wrong_ones(folder)  # a list for --exclude, too
    assert [float(row["score"]) for row in rows] == sorted(float(row["score"]) for row in rows)
    for row in rows:
        number = int(Path(row["image"]).stem)
        assert row["label"] == Path(row["image"]).parent.name
        assert row["suggested"] == NAMES[number % 3].strip("<>")
    page = (folder / "label_errors.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 6 and "6 labels that may be wrong" in page and "dög" in page
    assert "http" not in page.replace("http-equiv", "")


def test_images_that_are_gone(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "set").rename(folder.parent / "moved")
    done = run("labels", folder, "--out", tmp_path / "out")
    assert done.status == 1 and done.err.startswith("the page has no thumbnails: ")
    assert len((tmp_path / "out" / "label_errors.csv").read_text().splitlines()) == 7
    assert "data:image" not in (tmp_path / "out" / "label_errors.html").read_text()


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "train with --folds 5 --fold all" in one_line(run("labels", empty))
    assert "is a file of the run itself" in one_line(run("labels", folder, "--fix", folder / "config.yaml"))
    (folder / "out_of_fold.parquet").write_bytes(b"PAR1 broken")
    assert "cannot be read" in one_line(run("labels", folder))
    other = pa.table({"image": ["a"], "truth": ["x"], "fused:y": [1.0], "error": [None]})
    pq.write_table(other, folder / "out_of_fold.parquet")
    with pytest.raises(UserError, match="cannot be read"):
        find_label_errors(folder)
