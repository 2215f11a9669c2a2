"""How images with several labels are cut and dealt to folds."""

import warnings
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from conformer_vision.data import Splitting
from conformer_vision.errors import UserError

Labels = list[tuple[int, ...]]
SETS = st.sets(st.integers(0, 5), max_size=3).map(lambda each: tuple(sorted(each)))
LABELS = st.lists(SETS, min_size=1, max_size=40)


def cut(
    splitting: Splitting,
    labels: Labels,
    split: str = "val",
    names: Callable[[int], str] = str,
    groups: list[str] | None = None,
) -> list[int]:
    found = splitting.rows(
        labels,
        split,  # type: ignore[arg-type]
        origin="the set",
        classes=list("abcdef"),
        names=names,
        groups=groups,
    )
    return found.tolist()


def of_class(labels: Labels) -> dict[int, set[int]]:
    """The images of each class that there is."""
    found: dict[int, set[int]] = {}
    for row, label in enumerate(labels):
        for each in label:
            found.setdefault(each, set()).add(row)
    return found


@settings(deadline=None)
@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 99))
def test_each_class_on_both_sides(labels: Labels, share: float, seed: int) -> None:
    """A class is trained; one of its images is held out, unless each is the last one of a class."""
    train, val, both = (cut(Splitting(share, seed), labels, split) for split in ("train", "val", "all"))
    assert sorted(train + val) == both == list(range(len(labels)))
    classes = of_class(labels)
    for members in classes.values():
        assert members & {*train}
        if not members & {*val}:
            for row in members:
                assert any(classes[other] & {*train} == {row} for other in labels[row])


@settings(deadline=None)
@given(LABELS, st.floats(0.05, 0.5), st.integers(0, 9))
def test_what_decides_is_a_number_of_the_image(labels: Labels, share: float, seed: int) -> None:
    """Where each class has both sides by the numbers, they decide; of images without a label always."""
    splitting = Splitting(share, seed)
    val = {*cut(splitting, labels)}
    numbers = [splitting.number("", str(row)) for row in range(len(labels))]
    held_out = {row for row, number in enumerate(numbers) if number < share}
    if has_both_sides(labels, numbers, share):
        assert val == held_out
    assert all(labels[row] for row in val ^ held_out)
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    shuffled = cut(splitting, [labels[row] for row in order], names=lambda row: str(order[row]))
    assert {order[row] for row in shuffled} == val


def has_both_sides(labels: Labels, numbers: list[float], share: float) -> bool:
    return all(
        min(own) < share <= max(own)
        for own in ([numbers[row] for row in rows] for rows in of_class(labels).values())
    )


@settings(deadline=None)
@given(LABELS, LABELS, st.floats(0.05, 0.5), st.integers(0, 9))
def test_what_is_added_moves_no_other_image(before: Labels, added: Labels, share: float, seed: int) -> None:
    splitting = Splitting(share, seed)
    numbers = [splitting.number("", str(row)) for row in range(len(before))]
    after = {row for row in cut(splitting, before + added) if row < len(before)}
    if has_both_sides(before, numbers, share):
        assert after == {*cut(splitting, before)}


@settings(deadline=None)
@given(LABELS, st.integers(2, 5), st.integers(0, 99))
def test_folds(labels: Labels, folds: int, seed: int) -> None:
    """Each image is in one fold, and no class in a single one if moving one of its images can help."""
    cuts = [Splitting(seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    classes = of_class(labels)
    if max(map(len, classes.values()), default=0) < folds:
        with pytest.raises(UserError, match=f"folds {folds}: no class of the set has so many images"):
            cut(cuts[0], labels)
        return
    parts = [cut(each, labels) for each in cuts]
    assert sorted(row for rows in parts for row in rows) == list(range(len(labels)))
    fold_of = {row: fold for fold, rows in enumerate(parts) for row in rows}

    def is_whole(name: int, folds_of: dict[int, int]) -> bool:
        return len(classes[name]) > 1 and len({folds_of[row] for row in classes[name]}) == 1

    for row, label in enumerate(labels):
        if any(is_whole(name, fold_of) for name in label):
            for target in {*range(folds)} - {fold_of[row]}:
                assert any(is_whole(name, fold_of | {row: target}) for name in label)


def test_shares_are_near_what_was_asked_for() -> None:
    """Of classes that come together and of rare ones; the oracle is the binomial distribution."""
    rng = np.random.default_rng(0)
    chances = np.array([0.5, 0.2, 0.05, 0.01, 0.003])
    hot = rng.random((20_000, 5)) < chances
    hot[:, 1] |= hot[:, 0] & (rng.random(20_000) < 0.5)
    labels: Labels = [tuple(np.flatnonzero(row).tolist()) for row in hot]
    for splitting, share in ((Splitting(0.1), 0.1), (Splitting(folds=5, fold=2), 0.2)):
        val = cut(splitting, labels)
        counts = hot[val].sum(0)
        expected = hot.sum(0) * share
        assert (np.abs(counts - expected) < 4 * np.sqrt(expected * (1 - share))).all()
        assert len(val) == pytest.approx(20_000 * share, rel=0.1)


def test_it_is_the_same_on_every_machine() -> None:
    labels: Labels = [(0,), (0, 1), (), (2,), (1, 2), (0, 2), (), (1,)] * 3
    assert cut(Splitting(0.2, 3), labels) == [6, 9, 13, 17, 19, 22, 23]
    assert cut(Splitting(seed=3, folds=4, fold=1), labels) == [7, 8, 10, 11, 15, 16, 20]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 4), max_size=3), st.integers(0, 9)), min_size=1, max_size=50),
    st.floats(0.05, 0.9),
    st.integers(0, 9),
)
def test_groups_are_whole(images: list[tuple[set[int], int]], share: float, seed: int) -> None:
    labels: Labels = [tuple(sorted(label)) for label, _ in images]
    named = [f"g{group}" for _, group in images]
    try:
        val = {*cut(Splitting(share, seed, group="who"), labels, groups=named)}
    except UserError as error:
        assert "leaves no image of the set to validate on" in str(error)
        return
    held_out = {named[row] for row in val}
    assert val == {row for row, name in enumerate(named) if name in held_out}
    for rows in of_class(labels).values():
        assert rows - val


def test_folds_of_groups_are_those_of_scikit_learn() -> None:
    """Of images that are there once for each of their labels, and once with a label of their own for none."""
    rng = np.random.default_rng(0)
    members = rng.integers(0, 30, 400)
    labels: Labels = [tuple(np.flatnonzero(row).tolist()) for row in rng.random((400, 3)) < (0.6, 0.2, 0.1)]
    pairs = [(each, row) for row, label in enumerate(labels) for each in label]
    pairs += [(3, row) for row, label in enumerate(labels) if not label]
    classes, rows = np.array(pairs).T
    expected = StratifiedGroupKFold(5, shuffle=True, random_state=3).split(classes, classes, members[rows])
    named = [f"g{number:02d}" for number in members]
    seen: Counter[int] = Counter()
    for fold, (_, held) in enumerate(expected):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            val = cut(Splitting(seed=3, folds=5, fold=fold, group="who"), labels, groups=named)
        assert {*members[val].tolist()} == {*members[rows[held]].tolist()}
        seen.update(val)
    assert seen == Counter(range(400))


def test_groups_that_make_no_folds() -> None:
    labels: Labels = [(0,), (0, 1), (0,), (0, 1), (), (0,)]
    with pytest.raises(UserError, match=r"all images of the class b into one group \(y\)"):
        cut(Splitting(folds=2, group="who"), labels, groups=["x", "y", "x", "y", "x", "z"])
