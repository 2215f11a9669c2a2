"""How a set is cut into training and validation images; nothing here imports torch."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from conformer_vision.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Split = Literal["train", "val", "all"]


@dataclass(frozen=True)
class Splitting:
    """How a set without a validation split of its own is cut into training and validation images.

    Every image has a number from 0 to 1, the hash of the seed, its class and its name in the set. It is held
    out if its number is below ``val_fraction``, or falls into the fold. So what is added to a set, or taken
    from it, changes nothing for the other images, with one exception: a class of two or more
    images has at least one on either side.

    Attributes:
        val_fraction: share to hold out. The lowest number of a class is held out where none is below
            the share, and the highest stays where all are.
        seed: changes all numbers.
        folds: number of folds; one is held out in place of a share. None for no folds. Of a set with splits
            of its own, the training images are cut and the validation images are left alone.
        fold: the fold to hold out, from 0.

    Raises:
        UserError: a value out of range.
    """

    val_fraction: float = 0.1
    seed: int = 0
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"val_fraction {self.val_fraction}: must be between 0 and 1, both excluded")
        if self.seed < 0:
            raise UserError(f"seed {self.seed}: must be 0 or more")
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
        labels: Sequence[int] | NDArray[np.int64],
        split: Split,
        *,
        origin: str,
        classes: Sequence[str],
        names: Callable[[int], str] = str,
        parts: Mapping[Split, NDArray[np.int64]] | None = None,
    ) -> NDArray[np.int64]:
        """Select the split's images among all that ``labels`` lists.

        Args:
            labels: one label per image, an index into ``classes``.
            split: the split to take.
            origin: what an error calls the set.
            classes: the set's own class names.
            names: the name of an image in the set, by its index: one that stays when the set is moved or
                gets more images. Its index where it has none.
            parts: indices of the training and validation images of a set with splits of its own.
                ``train`` is cut where it is alone or folds are asked for.

        Returns:
            Indices, ascending within each part.

        Raises:
            UserError: more folds than any class has images, or no training images to take.
        """
        import numpy as np

        parts = parts or {}
        if self.cuts(parts):
            whole = parts.get("train", np.arange(len(labels)))
            if split == "all":
                return whole
            held_out = self._held_out(np.asarray(labels)[whole], whole, origin, classes, names)
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
        largest = max(map(len, members), default=0)
        if self.folds is not None and largest < self.folds:
            raise UserError(
                f"folds {self.folds}: no class of {origin} has so many images, the largest has {largest}; "
                "give fewer"
            )
        held_out = np.zeros(len(labels), bool)
        for mine in members:
            called = [names(row) for row in rows[mine].tolist()]
            held_out[mine] = self._choose(np.array(list(self._numbers(classes[labels[mine[0]]], called))))
        return held_out

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
