"""Which classes are taken for which, and the image of it: what stands in it, and that any number fits."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from PIL import Image

from conformer_vision.inference.confusion import Confusion, Pair, confused_pairs, shown_classes
from conformer_vision.inference.confusion_image import draw_confusion_matrix, save_confusion_matrix

FEW: Confusion = {"cat": {"cat": 3, "$a$ dog": 1}, "x" * 60: {"cat": 2, "x" * 60: 6}}
FEW_CLASSES = ("cat", "$a$ dog", "x" * 60)


def counts_of(classes: int) -> tuple[Confusion, list[str]]:
    """Every class with 10 images, of which one is taken for the next class; of class 7 five for class 150."""
    names = [f"class {i}" for i in range(classes)]
    counts = {name: {name: 9, names[i - 1]: 1} for i, name in enumerate(names)}
    if classes > 150:
        counts["class 7"] = {"class 7": 5, "class 150": 5}
    return counts, names


def test_pairs_and_the_classes_of_a_small_matrix() -> None:
    assert confused_pairs(FEW) == [Pair("x" * 60, "cat", 2, 0.25), Pair("cat", "$a$ dog", 1, 0.25)]
    assert confused_pairs({"cat": {"cat": 3}}) == []
    assert shown_classes(FEW, FEW_CLASSES, most=3) == list(FEW_CLASSES)
    counts, names = counts_of(200)
    assert shown_classes(counts, names, most=2) == ["class 7", "class 150"]
    shown = shown_classes(counts, names, most=40)
    assert (
        len(shown) == 40 and {"class 7", "class 150"} < set(shown) and sorted(shown, key=names.index) == shown
    )
    alone = {"c": {"c": 2}, "b": {"b": 5}}
    assert shown_classes(alone, ("a", "b", "c", "d"), most=1) == ["b"]  # the most images
    assert shown_classes(alone, ("a", "b", "c", "d"), most=3) == ["a", "b", "c"]  # then the first


def test_counts_shares_and_names() -> None:
    axes = draw_confusion_matrix(FEW, FEW_CLASSES).axes[0]
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
    assert axes.get_title() == "9 of 12 images right"


@pytest.mark.parametrize(("classes", "shown", "written"), [(20, 20, True), (40, 40, False), (200, 40, False)])
def test_what_is_written_depends_on_the_number_of_classes(classes: int, shown: int, written: bool) -> None:
    axes = draw_confusion_matrix(*counts_of(classes)).axes[0]
    assert bool(axes.texts) == written
    names = [t.get_text() for t in axes.get_xticklabels()]
    assert len(names) == shown and "class 7" in names
    assert ("the 40 most confused of 200 classes" in axes.get_title()) == (classes == 200)
    if classes == 200:  # a share is that of all images of the class, those outside the matrix included
        row, column = names.index("class 7"), names.index("class 150")
        assert axes.images[0].get_array()[row, column] == 0.5
        assert "of 2,000 images right" in axes.get_title()


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_png(tmp_path: Path, classes: int) -> None:
    before = dict(rcParams)
    counts, names = counts_of(classes)
    hostile = {names[0]: "$broken \\math {", names[1]: "犬"}
    counts = {
        hostile.get(true, true): {hostile.get(name, name): count for name, count in row.items()}
        for true, row in counts.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_confusion_matrix(counts, [hostile.get(name, name) for name in names], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) >= 400 and max(image.size) < 3000
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.png"]
    assert dict(rcParams) == before
