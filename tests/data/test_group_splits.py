"""How groups are dealt to the sides of a split and to folds."""

import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from conformer_vision.data import Splitting
from conformer_vision.data.grouped import Groups
from conformer_vision.errors import UserError


def cut(splitting: Splitting, labels: list[int], named: list[str]) -> set[int]:
    found = splitting.rows(labels, "val", origin="the set", classes=list("abcde"), groups=named)
    return set(found.tolist())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_one_split(images: list[tuple[int, int]], share: float, seed: int) -> None:
    """A group is on one side, each class is trained, and one of several groups held out where it can be."""
    labels, named = [label for label, _ in images], [f"g{group}" for _, group in images]
    splitting = Splitting(share, seed, group="who")
    try:
        held_out = cut(splitting, labels, named)
    except UserError as error:
        assert "leaves no image of the set to validate on" in str(error)
        return
    val = {named[row] for row in held_out}
    assert held_out == {row for row, name in enumerate(named) if name in val}
    for label in set(labels):
        of_class = {name for own, name in zip(labels, named, strict=True) if own == label}
        assert of_class - val
        if not of_class & val:  # then holding out any of its groups would leave a class without training
            for name in of_class:
                assert any(
                    {n for own, n in zip(labels, named, strict=True) if own == other} <= val | {name}
                    for other in set(labels)
                )


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 9))
def test_what_is_added_moves_no_other_group(before: int, more: int, seed: int) -> None:
    """Of groups that hold both classes, with some on either side of the share."""

    def held_out(count: int) -> set[str]:
        named = [f"g{number}" for number in range(count) for _ in range(2)]
        return {named[row] for row in cut(Splitting(0.4, seed, group="who"), [0, 1] * count, named)}

    numbered = [Splitting(seed=seed).number("", f"g{number}") for number in range(before)]
    if min(numbered) < 0.4 <= max(numbered):
        assert held_out(before) == {name for name in held_out(before + more) if int(name[1:]) < before}


def test_the_share_of_groups_is_near_what_was_asked_for() -> None:
    named = [f"g{number}" for number in range(4000)]
    assert len(cut(Splitting(0.2, group="who"), [0, 1] * 2000, named)) == pytest.approx(800, rel=0.1)


def test_folds_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    members = rng.integers(0, 30, 400)
    labels = (rng.random(400) < 0.2 + 0.02 * members).astype(int)
    named = [f"g{number:02d}" for number in members]
    expected = StratifiedGroupKFold(5, shuffle=True, random_state=3).split(labels, labels, members)
    for fold, (_, rows_of) in enumerate(expected):
        splitting = Splitting(seed=3, folds=5, fold=fold, group="who")
        assert cut(splitting, labels.tolist(), named) == set(rows_of.tolist())
        order = rng.permutation(400)  # the order of the images makes no difference
        shuffled = cut(splitting, labels[order].tolist(), [named[row] for row in order])
        assert {int(order[row]) for row in shuffled} == set(rows_of.tolist())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=60), st.integers(2, 5))
def test_folds_partition_the_groups_or_say_why_not(images: list[tuple[int, int]], folds: int) -> None:
    labels, named = [label for label, _ in images], [f"g{group}" for _, group in images]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parts = [cut(Splitting(folds=folds, fold=k, group="who"), labels, named) for k in range(folds)]
    except UserError as error:
        assert re.match(rf"folds {folds}: (no class|group 'who' of the set)", str(error))
        return
    assert sorted(row for part in parts for row in part) == list(range(len(images)))
    for part in parts:
        trained = set(range(len(images))) - part
        assert part and {labels[row] for row in trained} == set(labels)
        assert not {named[row] for row in part} & {named[row] for row in trained}


@pytest.mark.parametrize(
    ("labels", "named", "message"),
    [
        ([0, 1] * 10, ["a", "b", "a", "b"] * 5, r"has only 2 groups; give fewer folds"),
        ([0] * 9 + [1] * 3, list("abcabcabcddd"), r"all images of the class b into one group \(d\)"),
        ([0, 1, 2] * 2, list("abcabc"), r"no class of the set has so many images"),
    ],
)
def test_groups_that_make_no_folds(labels: list[int], named: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^folds 3: .*{message}"):
        cut(Splitting(folds=3, group="who"), labels, named)


def test_a_class_of_one_group_is_trained_on() -> None:
    labels, named = [0] * 9 + [1] * 3, list("abcabcabcddd")
    for seed in range(20):
        held_out = cut(Splitting(0.5, seed, group="who"), labels, named)
        assert held_out and not held_out & {9, 10, 11}
    with pytest.raises(UserError, match=r"group 'who' leaves no image .* each of its 2 groups is the only"):
        cut(Splitting(0.5, group="who"), [0, 0, 1], list("aab"))


def test_a_group_has_at_least_one_image() -> None:
    held = Groups.of([0, 0, 1], ["b", "a", "b"])
    assert (held.names, held.members.tolist(), held.alone()) == (("a", "b"), [1, 0, 1], (1, "b"))
