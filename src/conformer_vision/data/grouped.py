"""Images by class and group, dealt to the sides of a split and to folds; nothing here imports torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .base import Label, label_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Groups:
    """Images by class and group. An image with several labels that is in no group is a group of its own.

    Attributes:
        names: the groups, sorted where they have names; else empty texts.
        members: (N,), the group of each image, an index into ``names``.
        labels: (P,), the labels of all images; as many as images where each has one.
        images: (P,), the image of each label.
    """

    names: tuple[str, ...]
    members: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Sequence[Label] | NDArray[np.int64], groups: Sequence[str]) -> Groups:
        """Sort images into groups; ``labels`` and ``groups`` have one item per image."""
        import numpy as np

        names, members = np.unique(np.array(groups, dtype=object), return_inverse=True)
        rows, classes = label_pairs(labels)
        return cls(tuple(names.tolist()), members, classes, rows)

    @classmethod
    def of_images(cls, labels: Sequence[Label]) -> Groups:
        """Make each image a group."""
        import numpy as np

        rows, classes = label_pairs(labels)
        return cls(("",) * len(labels), np.arange(len(labels)), classes, rows)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """(P,), the group of each label's image."""
        return self.members[self.images]

    def alone(self) -> tuple[int, str] | None:
        """Return a class that a single group holds, and that group; None where there is no such class."""
        for label, members in self._by_class.items():
            if len(members) == 1:
                return label, self.names[members[0]]
        return None

    def largest(self) -> int:
        """Return the number of images of the largest class."""
        import numpy as np

        return int(np.bincount(self.labels).max(initial=0))

    def with_unlabelled(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return every label and its group, (P,) each, with one more class for images without a label."""
        import numpy as np

        rest = np.setdiff1d(np.arange(len(self.members)), self.images)
        another = np.full(len(rest), self.labels.max(initial=-1) + 1)
        return np.append(self.labels, another), np.append(self.owners, self.members[rest])

    def hold_out(self, numbers: Sequence[float], share: float) -> list[bool]:
        """Choose the groups to hold out: those of a number below the share, with two exceptions.

        Each class keeps a group to train on, the one of the highest number. A class of several groups has one
        held out, the one of the lowest number that leaves every class a group to train on.
        """
        held_out = [number < share for number in numbers]
        for members in self._by_class.values():
            if all(held_out[group] for group in members):
                held_out[max(members, key=numbers.__getitem__)] = False
        trained = {
            label: sum(not held_out[group] for group in members) for label, members in self._by_class.items()
        }
        for members in self._by_class.values():
            if any(held_out[group] for group in members):
                continue
            for group in sorted(members, key=numbers.__getitem__):
                if all(trained[label] > 1 for label in self._classes_of[group]):
                    held_out[group] = True
                    for label in self._classes_of[group]:
                        trained[label] -= 1
                    break
        return held_out

    def deal(self, numbers: Sequence[float], folds: int) -> list[int]:
        """Deal the groups to folds by their numbers, with one exception.

        A class of several groups is in more than one fold, since training on the others would lack it. The
        group of the highest number moves that leaves no other class in one fold alone.
        """
        dealt = _Dealt([int(number * folds) for number in numbers], folds, self._by_class, self._classes_of)
        again = True
        while again:  # a move never makes another necessary, but may make one possible
            again = False
            for label, members in self._by_class.items():
                if dealt.is_whole(label):
                    ordered = sorted(members, key=numbers.__getitem__, reverse=True)
                    again |= any(map(dealt.move, ordered))
        return dealt.fold_of

    def spread(self, held_out: Sequence[bool]) -> NDArray[np.bool_]:
        """Tell of each image whether its group is held out."""
        import numpy as np

        return np.array(held_out, bool)[self.members]

    @cached_property
    def _by_class(self) -> dict[int, list[int]]:
        """The groups of each class, ascending."""
        import numpy as np

        pairs = np.unique(self.labels * len(self.names) + self.owners)
        labels, groups = np.divmod(pairs, max(len(self.names), 1))
        starts = np.flatnonzero(np.diff(labels, prepend=-1))
        each = np.split(groups, starts[1:]) if len(starts) else []
        return {int(label): part.tolist() for label, part in zip(labels[starts], each, strict=True)}

    @cached_property
    def _classes_of(self) -> dict[int, list[int]]:
        """The classes of each group that has some."""
        found: dict[int, list[int]] = {}
        for label, members in self._by_class.items():
            for group in members:
                found.setdefault(group, []).append(label)
        return found


class _Dealt:
    """Groups on their folds."""

    def __init__(
        self,
        fold_of: list[int],
        folds: int,
        by_class: dict[int, list[int]],
        classes_of: dict[int, list[int]],
    ) -> None:
        self.fold_of = fold_of
        self._folds = folds
        self._by_class, self._classes_of = by_class, classes_of
        self._counts = Counter(
            (label, fold_of[group]) for label, members in by_class.items() for group in members
        )

    def is_whole(self, label: int) -> bool:
        """Tell whether a class of several groups is in one fold."""
        members = self._by_class[label]
        return len(members) > 1 and self._counts[label, self.fold_of[members[0]]] == len(members)

    def move(self, group: int) -> bool:
        """Move a group to the next fold where it makes no class whole; say whether there is such a fold."""
        classes = self._classes_of[group]
        for step in range(1, self._folds):
            target = (self.fold_of[group] + step) % self._folds
            if any(self._counts[label, target] == len(self._by_class[label]) - 1 > 0 for label in classes):
                continue
            for label in classes:
                self._counts[label, self.fold_of[group]] -= 1
                self._counts[label, target] += 1
            self.fold_of[group] = target
            return True
        return False
