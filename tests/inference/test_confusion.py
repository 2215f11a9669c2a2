"""The image of a confusion matrix: what stands in it, and that every number of classes fits."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from PIL import Image

from conformer_vision.inference.confusion import draw_confusion_matrix, save_confusion_matrix


def matrix(classes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 9, (classes, classes))


def test_counts_shares_and_names() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 6]])
    axes = draw_confusion_matrix(counts, ["cat", "$a$ dog", "x" * 60]).axes[0]
    shares = axes.images[0].get_array()
    assert np.array_equal(shares.filled(-1), [[0.75, 0.25, 0], [-1, -1, -1], [0.25, 0, 0.75]])
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), "3"),
        ((1, 0), "1"),
        ((0, 2), "2"),
        ((2, 2), "6"),
    }
    names = [t.get_text() for t in axes.get_yticklabels()]
    assert names[:2] == ["cat", "$a$ dog"] and len(names[2]) == 24 and names[2].endswith("…")
    assert axes.get_title() == "top-1 75.0 % of 12 images"


@pytest.mark.parametrize(
    ("classes", "counts", "names"), [(20, True, True), (40, False, True), (41, False, False)]
)
def test_what_is_written_depends_on_the_number_of_classes(classes: int, counts: bool, names: bool) -> None:
    figure = draw_confusion_matrix(matrix(classes), [f"c{i}" for i in range(classes)])
    assert bool(figure.axes[0].texts) == counts
    assert ("c1" in [t.get_text() for t in figure.axes[0].get_xticklabels()]) == names


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_png(tmp_path: Path, classes: int) -> None:
    before = dict(rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = ["$broken \\math {", "犬", *map(str, range(classes - 2))]
        save_confusion_matrix(matrix(classes).tolist(), names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) >= max(400, 4 * classes)
        assert max(image.size) < 5000
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.png"]
    assert dict(rcParams) == before


def test_no_images_at_all() -> None:
    figure = draw_confusion_matrix(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert figure.axes[0].get_title() == "top-1 0.0 % of 0 images"
