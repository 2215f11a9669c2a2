"""How sets are cut; that every form of data is cut this way is in tests/contracts/source.py."""

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformer_vision.data import Splitting
from conformer_vision.errors import UserError
from image_sets import opened

Folders = Callable[..., Path]
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)
CLASSES = ["a", "b", "c", "d", "e"]


def cut(
    splitting: Splitting, labels: list[int], split: str = "val", names: Callable[[int], str] = str
) -> list[int]:
    rows = splitting.rows(labels, split, origin="the set", classes=CLASSES, names=names)  # type: ignore[arg-type]
    return rows.tolist()


@settings(deadline=None)
@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_a_share_of_every_class(labels: list[int], share: float, seed: int) -> None:
    train, val, both = (cut(Splitting(share, seed), labels, split) for split in ("train", "val", "all"))
    assert sorted(train + val) == both == list(range(len(labels)))
    assert (train, val) == (sorted(train), sorted(val))
    held_out = Counter(labels[row] for row in val)
    for label, count in Counter(labels).items():
        assert min(count - 1, 1) <= held_out[label] < count


@settings(deadline=None)
@given(LABELS, st.integers(2, 6), st.integers(0, 2**40))
def test_folds_partition_the_set(labels: list[int], folds: int, seed: int) -> None:
    cuts = [Splitting(seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    if max(Counter(labels).values()) < folds:
        with pytest.raises(UserError, match=f"folds {folds}: no class of the set has so many images"):
            cut(cuts[0], labels)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held_out = [cut(each, labels) for each in cuts]
        training = [cut(each, labels, "train") for each in cuts]
    assert sorted(row for rows in held_out for row in rows) == list(range(len(labels)))
    for train, val in zip(training, held_out, strict=True):
        assert sorted(train + val) == list(range(len(labels)))
        assert {label for label, count in Counter(labels).items() if count > 1} <= {
            labels[row] for row in train
        }


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.text(max_size=4)), min_size=1, max_size=40, unique=True),
    st.lists(st.tuples(st.integers(0, 4), st.text(max_size=4)), max_size=20, unique=True),
    st.floats(0.05, 0.5),
    st.integers(0, 9),
)
def test_what_is_added_moves_no_image_of_a_class_that_has_both_sides(
    before: list[tuple[int, str]], added: list[tuple[int, str]], share: float, seed: int
) -> None:
    """A class that has images on either side of the share keeps them there; order does not matter."""
    splitting = Splitting(share, seed)
    after = sorted({*before, *added}, key=repr)

    def held_out(images: list[tuple[int, str]]) -> set[tuple[int, str]]:
        names = [name for _, name in images]
        return {
            images[row] for row in cut(splitting, [label for label, _ in images], names=names.__getitem__)
        }

    for label in range(5):
        numbers = [splitting.number(CLASSES[label], name) for own, name in before if own == label]
        if any(n < share for n in numbers) and any(n >= share for n in numbers):
            assert {i for i in held_out(before) if i[0] == label} == {
                i for i in held_out(after) if i[0] == label and i in before
            }
    new = held_out(after) - held_out(before) - set(added)
    for label, _ in new:  # an image that was trained on, of a class of one image or all below the share
        numbers = [splitting.number(CLASSES[label], name) for own, name in before if own == label]
        assert len(numbers) == 1 or all(n < share for n in numbers)


def test_the_share_is_near_what_was_asked_for() -> None:
    for share in (0.05, 0.1, 0.3):
        assert len(cut(Splitting(share), [0] * 10_000)) == pytest.approx(10_000 * share, rel=0.1)
    assert len(cut(Splitting(folds=5), [0] * 10_000)) == pytest.approx(2000, rel=0.1)


def test_it_is_the_same_on_every_machine() -> None:
    assert cut(Splitting(0.2, 3), [0, 1] * 10) == [17, 18]
    assert cut(Splitting(seed=3, folds=4, fold=1), [0, 1] * 8) == [1, 5, 12, 13]
    assert cut(Splitting(seed=4), [0] * 40) != cut(Splitting(seed=5), [0] * 40)


def test_names_are_compared_as_systems_write_them() -> None:
    splitting = Splitting()
    assert splitting.number("a", "Zo\u00eb.png") == splitting.number("a", "Zoe\u0308.png")
    assert splitting.number("a", "x") != splitting.number("b", "x") != Splitting(seed=1).number("b", "x")
    splitting.number("a", "caf\udce9.png")  # a file name that is not UTF-8


def test_equal_names_are_apart() -> None:
    assert 0 < len(cut(Splitting(0.3), [0] * 50, names=lambda row: "image.png")) < 40


def test_a_split_of_its_own() -> None:
    labels, parts = [0, 1] * 10, {"train": np.arange(4, 20), "val": np.arange(4)}
    part_only = {"train": np.arange(20)[::2]}

    def rows(split: str, given: object = parts, splitting: Splitting = Splitting()) -> list[int]:  # noqa: B008
        found = splitting.rows(labels, split, origin="x", classes=CLASSES, parts=given)  # type: ignore[arg-type]
        return found.tolist()

    assert rows("train") == list(range(4, 20))
    assert rows("val") == [0, 1, 2, 3]
    assert rows("all") == [*range(4, 20), *range(4)]
    folds = [rows("val", splitting=Splitting(folds=4, fold=fold)) for fold in range(4)]
    assert sorted(row for fold in folds for row in fold) == list(range(4, 20))
    assert sorted(rows("train", part_only) + rows("val", part_only)) == part_only["train"].tolist()
    val_only = {"val": parts["val"]}
    assert rows("val", val_only) == [0, 1, 2, 3]
    for splitting, split in ((Splitting(), "train"), (Splitting(folds=2), "val")):
        with pytest.raises(UserError, match="x holds validation images but none for training"):
            rows(split, val_only, splitting)


def test_folds_cut_the_training_part(
    tmp_path: Path, class_folders: Folders, parquet: Callable[..., Path]
) -> None:
    class_folders(tmp_path / "set" / "train", ["a", "b"], count=6)
    class_folders(tmp_path / "set" / "val", ["a", "b"], count=2)
    parquet("files/train.parquet", [0, 1] * 6, names=["x", "y"])
    parquet("files/val.parquet", [0, 1], names=["x", "y"])
    for root in (tmp_path / "set", tmp_path / "files"):
        parts = [opened(root, split=split, folds=3, fold=1) for split in ("train", "val", "all")]
        assert len(parts[0]) + len(parts[1]) == len(parts[2]) == 12
        assert all("train" in part.name(i) for part in parts for i in range(len(part)))
    class_folders(tmp_path / "only" / "val", ["a", "b"], count=4)
    with pytest.raises(UserError, match="holds val but no train"):
        opened(tmp_path / "only", split="val", classes=["a", "b"], folds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction 1.0: must be between 0 and 1"),
        ({"val_fraction": float("nan")}, "val_fraction nan: must be between 0 and 1"),
        ({"seed": -1}, "seed -1: must be 0 or more"),
        ({"folds": 1}, "folds 1: must be 2 or more"),
        ({"folds": 3, "fold": 3}, "fold 3: must be from 0 to 2, as there are 3"),
        ({"folds": 3, "fold": -1}, "fold -1: must be from 0 to 2"),
        ({"fold": 1}, "fold 1: give the number of folds too"),
    ],
)
def test_impossible_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Splitting(**options)  # type: ignore[arg-type]
