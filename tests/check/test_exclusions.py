"""Which copies are left out of training."""

import numpy as np
import pytest

from conformer_vision.check.duplicates import Copies
from conformer_vision.check.exclusions import exclusions
from conformer_vision.check.result import ImageRef


def excluded(
    images: list[str],
    groups: list[tuple[int, ...]],
    *,
    near: list[tuple[int, int]],
    first: list[int],
    redundant: bool = False,
) -> dict[int, str]:
    """Images are given as ``split class``."""
    copies = Copies(tuple(groups), np.array(near, np.int64).reshape(-1, 2), np.array(first))
    known = [ImageRef(f"p{number}", *text.split()) for number, text in enumerate(images)]
    return dict(exclusions(copies, known.__getitem__, redundant=redundant))


@pytest.mark.parametrize("redundant", [False, True])
def test_the_training_copy_of_a_validation_image_goes(redundant: bool) -> None:
    images = ["train cat", "train cat", "val cat", "val cat"]
    found = excluded(images, [(0, 1, 2, 3)], near=[(1, 2)], first=[0, 1, 0, 2], redundant=redundant)
    assert found == {0: "copy of p2 in val", 1: "looks like p3 in val"}


def test_all_training_copies_with_different_classes_go() -> None:
    images = ["train cat", "train dog", "train dog", "train cat"]
    found = excluded(images, [(0, 1, 2, 3)], near=[(0, 2), (2, 3)], first=[0, 0, 2, 3])
    assert found == {
        0: "copy of p1, but is cat and not dog",
        1: "copy of p0, but is dog and not cat",
        2: "looks like p0, but is dog and not cat",
        3: "looks like p2, but is cat and not dog",
    }


def test_copies_by_way_of_a_third_image_stay() -> None:
    found = excluded(
        ["train cat", "train cat", "val cat"], [(0, 1, 2)], near=[(0, 1), (1, 2)], first=[0, 1, 2]
    )
    assert found == {1: "looks like p2 in val"}


def test_validation_images_stay() -> None:
    found = excluded(["val cat", "val cat", "val dog"], [(0, 1, 2)], near=[], first=[0, 0, 0], redundant=True)
    assert found == {}


def test_further_copies_within_a_class_go_when_asked() -> None:
    images = ["train cat", "train cat", "train cat", "train cat"]
    arguments = {"groups": [(0, 1, 2, 3)], "near": [(0, 3)], "first": [0, 0, 0, 3]}
    assert excluded(images, **arguments) == {}  # type: ignore[arg-type]
    found = excluded(images, **arguments, redundant=True)  # type: ignore[arg-type]
    assert found == {1: "copy of p0", 2: "copy of p0"}, "what only looks alike stays"
