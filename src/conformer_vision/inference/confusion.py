"""Which classes are taken for which, counted for the pairs that occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

Confusion = dict[str, dict[str, int]]
"""True class -> predicted class -> number of images, without the zeros."""


class Pair(NamedTuple):
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    images: int
    share: float
    """Of the true class's images."""


def confused_pairs(confusion: Confusion) -> list[Pair]:
    """Return all pairs of different classes, the most frequent first."""
    pairs = []
    for true, row in confusion.items():
        total = sum(row.values())
        pairs += [Pair(true, name, count, count / total) for name, count in row.items() if name != true]
    return sorted(pairs, key=lambda pair: -pair.images)


def shown_classes(confusion: Confusion, classes: Sequence[str], *, most: int) -> list[str]:
    """Return the classes that a matrix of limited size shows, in the order of ``classes``.

    They are all classes if no more than ``most``; else those of the most frequent confusions, then those of
    the most images, then the first ones.
    """
    if len(classes) <= most:
        return list(classes)
    images = Counter({true: sum(row.values()) for true, row in confusion.items()})
    by_confusion = ((pair.true, pair.predicted) for pair in confused_pairs(confusion))
    chosen: set[str] = set()
    by_images = ((name,) for name, _ in images.most_common())
    for names in (*by_confusion, *by_images, *zip(classes)):
        if len(chosen.union(names)) <= most:
            chosen.update(names)
    return [name for name in classes if name in chosen]
