"""How a set is cut into training and validation images; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Attributes:
        val_fraction: share of every class to hold out; see `stratified_split`.
        seed: seed of the draw; the same seed gives the same split everywhere.
        folds: number of stratified folds; one is held out in place of a share of every class. None
            for no folds. Of a set with splits of its own, the training images are cut and the
            validation images are left alone.
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
        parts: Mapping[Split, NDArray[np.int64]] | None = None,
    ) -> NDArray[np.int64]:
        """Indices of the split's images among all that ``labels`` lists.

        Args:
            labels: one label per image.
            split: the split to take.
            origin: what an error calls the set.
            parts: indices of the training and validation images of a set with splits of its own.
                ``train`` is cut where it is alone or folds are asked for.

        Raises:
            UserError: more folds than any class has images, or no training images to take.
        """
        import numpy as np

        parts = parts or {}
        if "val" not in parts or (self.folds is not None and "train" in parts):
            whole = parts.get("train", np.arange(len(labels)))
            drawn: NDArray[np.int64] = whole[self._draw(np.asarray(labels)[whole], split, origin=origin)]
            return drawn
        if "train" not in parts and (split == "train" or self.folds is not None):
            raise UserError(f"{origin} holds validation images but none for training; add some")
        return np.concatenate(
            [parts[part] for part in ("train", "val") if part in parts and split in (part, "all")]
        )

    def _draw(self, labels: NDArray[np.int64], split: Split, *, origin: str) -> NDArray[np.int64]:
        if self.folds is None:
            return stratified_split(labels, val_fraction=self.val_fraction, seed=self.seed)[split]
        return stratified_fold(labels, folds=self.folds, fold=self.fold, seed=self.seed, origin=origin)[split]


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


def stratified_split(
    labels: Sequence[int] | NDArray[np.int64], *, val_fraction: float, seed: int
) -> dict[Split, NDArray[np.int64]]:
    """Indices per split, ascending; the same seed gives the same split everywhere.

    Of every class about ``val_fraction`` is held out: at least one image where it has two or
    more, and never all of them.
    """
    import numpy as np

    array = np.asarray(labels, dtype=np.int64)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(array), dtype=bool)
    for label in np.unique(array):
        members = rng.permutation(np.flatnonzero(array == label))
        count = min(max(round(len(members) * val_fraction), 1), len(members) - 1)
        held_out[members[:count]] = True
    return {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out), "all": np.arange(len(array))}


def stratified_fold(
    labels: Sequence[int] | NDArray[np.int64], *, folds: int, fold: int, seed: int, origin: str
) -> dict[Split, NDArray[np.int64]]:
    """Indices per split, ascending, where fold number ``fold`` of ``folds`` is held out.

    Every image is held out in exactly one fold, and the counts of a class differ by at most one
    between folds (scikit-learn's ``StratifiedKFold``). A class with fewer images than folds is
    missing from some of them.

    Raises:
        UserError: more folds than the largest class has images; ``origin`` is what it calls the set.
    """
    import warnings

    import numpy as np
    from sklearn.model_selection import StratifiedKFold

    array = np.asarray(labels, dtype=np.int64)
    largest = int(np.unique(array, return_counts=True)[1].max(initial=0))
    if largest < folds:
        raise UserError(
            f"folds {folds}: no class of {origin} has so many images, the largest has {largest}; give fewer"
        )
    cut = StratifiedKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # about classes with fewer images than folds; see above
        warnings.simplefilter("ignore", UserWarning)
        train, val = list(cut.split(np.zeros(len(array)), array))[fold]
    return {"train": train, "val": val, "all": np.arange(len(array))}
