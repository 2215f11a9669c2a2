"""How a set is cut into training and validation images; nothing here imports torch."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from conformer_vision.errors import UserError, some_names

from .base import Label
from .grouped import Groups

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "val", "all"]


@dataclass(frozen=True)
class Splitting:
    """How a set is cut into training and validation images, and which columns say so.

    A set with a validation split of its own keeps it.
    Every image has a number from 0 to 1, the hash of the seed, its class and its name in the set. It is held
    out if its number is below ``val_fraction``, or falls into the fold. So what is added to a set, or taken
    from it, changes nothing for the other images, with one exception: a class of two or more
    images has at least one on either side.

    Of an image with several labels the number is the hash of the seed and its name. Each class has images on
    either side, as far as its images' other classes allow (`Groups.hold_out`, `Groups.deal`).

    With groups it is the groups that have numbers, so that the images of one stay together. Folds of groups
    are dealt by scikit-learn's ``StratifiedGroupKFold``, which looks at all of them and counts an image with
    several labels once for each; a run therefore records its folds.

    Attributes:
        val_fraction: share to hold out. The lowest number of a class is held out where none is below
            the share, and the highest stays where all are.
        seed: changes all numbers.
        folds: number of folds; one is held out in place of a share. None for no folds. Of a set with splits
            of its own, the training images are cut and the validation images are left alone.
        fold: the fold to hold out, from 0.
        group: a column of the set, or a regular expression that finds a group in each image's path
            (`groups.Grouping`); None to split image by image.
        label_column: the column of labels, or several, with commas between them, that each say whether an
            image is of the class that the column is called; None for the column of a known name.
        label_separator: what stands between several labels in a text; None for one label per text.
        recorded: the fold of each group as a run recorded it; other groups are dealt by their numbers.

    Raises:
        UserError: a value out of range.
    """

    val_fraction: float = 0.1
    seed: int = 0
    folds: int | None = None
    fold: int = 0
    group: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    recorded: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction {self.val_fraction}: must be between 0 and 1, both excluded")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must be 0 or more")
        if self.group is not None and not self.group.strip():
            raise UserError("group is empty; give a column or a regular expression, or leave it out")
        for name in ("label_column", "label_separator"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; leave it out for the default")
        if self.folds is None:
            if self.fold != 0:
                raise UserError(f"fold {self.fold}: give the number of folds too")
        elif self.folds < 2:
            raise UserError(f"folds {self.folds}: must be 2 or more")
        elif not 0 <= self.fold < self.folds:
            raise UserError(
                f"fold {self.fold}: must be from 0 to {self.folds - 1}, as there are {self.folds}"
            )

    def rows(
        self,
        labels: Sequence[Label] | NDArray[np.int64],
        split: Split,
        *,
        origin: str,
        classes: Sequence[str],
        names: Callable[[int], str] = str,
        parts: Mapping[Split, NDArray[np.int64]] | None = None,
        groups: Sequence[str] | None = None,
    ) -> NDArray[np.int64]:
        """Select the split's images among all that ``labels`` lists.

        Args:
            labels: one label per image, an index into ``classes`` or several of them.
            split: the split to take.
            origin: what an error calls the set.
            classes: the set's own class names.
            names: the name of an image in the set, by its index: one that stays when the set is moved or
                gets more images. Its index where it has none.
            parts: indices of the training and validation images of a set with splits of its own.
                ``train`` is cut where it is alone or folds are asked for.
            groups: the group of each image; None to split image by image.

        Returns:
            Indices, ascending within each part.

        Raises:
            UserError: more folds than any class has images, no training images to take, or groups that
                cannot be parted so that each class is trained.
        """
        import numpy as np

        parts = parts or {}
        if self.cuts(parts):
            whole = parts.get("train", np.arange(len(labels)))
            if split == "all":
                return whole
            rows = whole.tolist()
            mine = [labels[row] for row in rows]
            if groups is not None:
                grouped = Groups.of(mine, [groups[row] for row in rows])
                held_out = self._hold_out_groups(grouped, origin, classes)
            elif mine and isinstance(mine[0], tuple):
                held_out = self._hold_out_images(mine, list(map(names, rows)), origin)
            else:
                held_out = self._held_out(np.array(mine, np.int64), whole, origin, classes, names)
            return whole[held_out if split == "val" else ~held_out]
        if "train" not in parts and (split == "train" or self.folds is not None):
            raise UserError(f"{origin} holds validation images but none for training; add some")
        return np.concatenate(
            [parts[part] for part in ("train", "val") if part in parts and split in (part, "all")]
        )

    def cuts(self, parts: Mapping[Split, object]) -> bool:
        """Tell whether a set with these splits of its own is cut."""
        return "val" not in parts or (self.folds is not None and "train" in parts)

    def number(self, label: str, name: str) -> float:
        """Return the number of an image of a class, from 0 to 1, 1 excluded."""
        if not name.isascii():  # systems write the same letters as different characters
            name = unicodedata.normalize("NFC", name)
        text = f"{self.seed}\0{label}\0{name}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48

    def _held_out(
        self,
        labels: NDArray[np.int64],
        rows: NDArray[np.int64],
        origin: str,
        classes: Sequence[str],
        names: Callable[[int], str],
    ) -> NDArray[np.bool_]:
        import numpy as np

        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if self.folds is not None:
            self._check_largest(max(map(len, members), default=0), origin)
        held_out = np.zeros(len(labels), bool)
        for mine in members:
            called = [names(row) for row in rows[mine].tolist()]
            held_out[mine] = self._choose(np.array(list(self._numbers(classes[labels[mine[0]]], called))))
        return held_out

    def _hold_out_images(
        self, labels: Sequence[Label], names: Sequence[str], origin: str
    ) -> NDArray[np.bool_]:
        """Tell which images with several labels are held out."""
        images = Groups.of_images(labels)
        numbers = list(self._numbers("", names))
        if self.folds is None:
            return images.spread(images.hold_out(numbers, self.val_fraction))
        self._check_largest(images.largest(), origin)
        return images.spread([fold == self.fold for fold in images.deal(numbers, self.folds)])

    def _check_largest(self, images: int, origin: str) -> None:
        if self.folds is not None and images < self.folds:
            raise UserError(
                f"folds {self.folds}: no class of {origin} has so many images, the largest has {images}; "
                "give fewer"
            )

    def _hold_out_groups(self, groups: Groups, origin: str, classes: Sequence[str]) -> NDArray[np.bool_]:
        """Tell which images are held out, group by group."""
        if self.folds is not None:
            folds = self.recorded if self.recorded is not None else self.deal(groups, origin, classes)
            held_out = [
                folds.get(name, int(self.number("", name) * self.folds)) == self.fold for name in groups.names
            ]
        else:
            held_out = groups.hold_out([self.number("", name) for name in groups.names], self.val_fraction)
            if len(groups.labels) and not any(held_out):
                raise UserError(
                    f"group {self.group!r} leaves no image of {origin} to validate on: each of its "
                    f"{len(groups.names):,} groups is the only one of a class"
                )
        return groups.spread(held_out)

    def deal(self, groups: Groups, origin: str, classes: Sequence[str]) -> dict[str, int]:
        """Deal the groups to folds, with the classes as even in all as groups allow.

        Args:
            groups: those of all images.
            origin: what an error calls the set.
            classes: the class names.

        Raises:
            UserError: fewer groups than folds, or a class that would be missing in the training of a fold.
        """
        import warnings

        import numpy as np
        from sklearn.model_selection import StratifiedGroupKFold

        assert self.folds is not None
        what = f"folds {self.folds}: group {self.group!r} of {origin}"
        if len(groups.names) < self.folds:
            raise UserError(f"{what} has only {len(groups.names)} groups; give fewer folds")
        self._check_largest(groups.largest(), origin)
        if (alone := groups.alone()) is not None:
            label, name = alone
            raise UserError(
                f"{what} puts all images of the class {some_names([classes[label]])} into one group "
                f"({some_names([name])}), which one fold would have to learn without; leave the class out "
                "or group otherwise"
            )
        cut = StratifiedGroupKFold(self.folds, shuffle=True, random_state=self.seed % 2**32)
        labels, owners = groups.with_unlabelled()
        with warnings.catch_warnings():  # of classes with fewer images than folds
            warnings.simplefilter("ignore")
            parts = [val for _, val in cut.split(labels, labels, owners)]
        folds = {groups.names[owners[row]]: fold for fold, rows in enumerate(parts) for row in rows}
        for fold, rows in enumerate(parts):
            lost = np.setdiff1d(groups.labels, groups.labels[~np.isin(groups.owners, owners[rows])])
            if len(lost) or not len(rows):
                lacks = f"has no image of {some_names([classes[n] for n in lost])} to train on"
                raise UserError(
                    f"{what}: fold {fold} {lacks if len(lost) else 'would be empty'}; give fewer folds "
                    "or another seed"
                )
        return folds

    def _numbers(self, label: str, names: Sequence[str]) -> Iterator[float]:
        """Yield the number of each image of a class; equal names get different ones."""
        seen: Counter[str] = Counter()
        for name in names:
            yield self.number(label, f"{name}\0{seen[name]}" if seen[name] else name)
            seen[name] += 1

    def _choose(self, numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which images of a class are held out."""
        import numpy as np

        if self.folds is not None:
            folds = np.floor(numbers * self.folds)
            if len(folds) > 1 and (folds == folds[0]).all():  # training on the others would lack the class
                folds[numbers.argmax()] = (folds[0] + 1) % self.folds
            in_fold: NDArray[np.bool_] = folds == self.fold
            return in_fold
        held_out: NDArray[np.bool_] = numbers < self.val_fraction
        if held_out.all():
            held_out[numbers.argmax()] = False
        elif not held_out.any() and len(numbers) > 1:
            held_out[numbers.argmin()] = True
        return held_out


@dataclass(frozen=True)
class Request:
    """Which images of a set to open.

    Attributes:
        split: ``train`` or ``val``, or ``all`` for both together.
        splitting: how to cut a set without a validation split of its own.
        classes: class names of a trained model, to which labels are matched by name.
        data_dir: where named sets are kept.

    Raises:
        UserError: an unknown split.
    """

    split: Split
    splitting: Splitting = Splitting()  # immutable
    classes: Sequence[str] | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "all"):
            raise UserError(f"split {self.split!r}: must be train, val or all")
