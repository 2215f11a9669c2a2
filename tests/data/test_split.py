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


@settings(deadline=None)
@given(LABELS, st.integers(2, 6), st.integers(0, 2**40))
def test_folds_partition_the_set(labels: list[int], folds: int, seed: int) -> None:
    cuts = [Splitting(seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    if max(Counter(labels).values()) < folds:
        with pytest.raises(UserError, match=f"folds {folds}: no class of the set has so many"):
            cuts[0].rows(labels, "val", origin="the set")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held_out = [cut.rows(labels, "val", origin="the set").tolist() for cut in cuts]
        training = [cut.rows(labels, "train", origin="the set").tolist() for cut in cuts]
    everything = list(range(len(labels)))
    assert sorted(row for rows in held_out for row in rows) == everything  # covering and disjoint
    for train, val in zip(training, held_out, strict=True):
        assert sorted(train + val) == everything
        assert train == sorted(train)
    for label, total in Counter(labels).items():
        for rows in held_out:
            count = sum(labels[row] == label for row in rows)
            assert total // folds <= count <= -(-total // folds)
    assert cuts[-1].rows(labels, "val", origin="x").tolist() == held_out[-1]
    assert cuts[0].rows(labels, "all", origin="x").tolist() == everything


@settings(deadline=None)
@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_a_share_of_a_set_with_a_training_part_alone(labels: list[int], share: float, seed: int) -> None:
    cut = Splitting(share, seed)
    part = np.arange(len(labels))[::2]
    train, val = (cut.rows(labels, split, origin="x", parts={"train": part}) for split in ("train", "val"))
    own = [labels[row] for row in part]
    assert sorted([*train, *val]) == part.tolist()
    assert train.tolist() == part[cut.rows(own, "train", origin="x")].tolist()


def test_a_split_of_its_own() -> None:
    labels, parts = [0, 1] * 10, {"train": np.arange(4, 20), "val": np.arange(4)}
    cut = Splitting()
    assert cut.rows(labels, "train", origin="x", parts=parts).tolist() == list(range(4, 20))
    assert cut.rows(labels, "val", origin="x", parts=parts).tolist() == [0, 1, 2, 3]
    assert cut.rows(labels, "all", origin="x", parts=parts).tolist() == [*range(4, 20), *range(4)]
    folds = [Splitting(folds=4, fold=fold).rows(labels, "val", origin="x", parts=parts) for fold in range(4)]
    assert sorted(row for rows in folds for row in rows) == list(range(4, 20))
    val_only = {"val": parts["val"]}
    assert cut.rows(labels, "val", origin="x", parts=val_only).tolist() == [0, 1, 2, 3]
    for splitting, split in ((cut, "train"), (Splitting(folds=2), "val")):
        with pytest.raises(UserError, match="x holds validation images but none for training"):
            splitting.rows(labels, split, origin="x", parts=val_only)


def test_folds_are_the_same_on_every_machine() -> None:
    rows = Splitting(seed=3, folds=4, fold=1).rows([0, 1] * 8, "val", origin="x")
    assert rows.tolist() == [8, 9, 11, 14]


def test_folds_of_every_form(tmp_path: Path, class_folders: Folders, parquet: Callable[..., Path]) -> None:
    table = parquet("set.parquet", [0, 1] * 9, names=["x", "y"])
    for spec in ("digits", class_folders(tmp_path / "set", ["a", "b"], count=9), table):
        parts = [opened(spec, split="val", folds=3, fold=fold) for fold in range(3)]
        names = [part.name(i) for part in parts for i in range(len(part))]
        whole = opened(spec, split="all", folds=3)
        assert sorted(names) == sorted(whole.name(i) for i in range(len(whole)))
        train = opened(spec, split="train", folds=3, fold=2)
        assert {train.name(i) for i in range(len(train))} == set(names[: -len(parts[2])])


def test_folds_cut_the_training_part(
    tmp_path: Path, class_folders: Folders, parquet: Callable[..., Path]
) -> None:
    class_folders(tmp_path / "set" / "train", ["a", "b"], count=6)
    class_folders(tmp_path / "set" / "val", ["a", "b"], count=2)
    parquet("files/train.parquet", [0, 1] * 6, names=["x", "y"])
    parquet("files/val.parquet", [0, 1], names=["x", "y"])
    for root in (tmp_path / "set", tmp_path / "files"):
        parts = [opened(root, split=split, folds=3, fold=1) for split in ("train", "val", "all")]
        assert [len(part) for part in parts] == [8, 4, 12]
        assert all("train" in part.name(i) for part in parts for i in range(len(part)))
    class_folders(tmp_path / "only" / "val", ["a", "b"], count=4)
    with pytest.raises(UserError, match="holds val but no train"):
        opened(tmp_path / "only", split="val", classes=["a", "b"], folds=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, "val_fraction 1.0: must be between 0 and 1"),
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
