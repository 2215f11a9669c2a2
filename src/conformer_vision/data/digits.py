"""scikit-learn's handwritten digits: real images that are there wherever the package is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import match_classes
from .groups import Grouping
from .objects import DatasetSource
from .splits import Request


class _Digits:
    """The 1,797 digits of the UCI test set, 8 × 8 pixels, grey values 0..16 scaled to 0..255."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        self.classes = [str(name) for name in digits.target_names]
        self.targets = digits.target.astype(np.int64)
        self._pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        return self._pixels[index], int(self.targets[index])


def open_digits(name: str, request: Request) -> DatasetSource:
    """Open the digits; they are called ``digits row N``, N counted in the whole set.

    Args:
        name: what messages call the set.
        request: which images to open.
    """
    digits = _Digits()
    Grouping(name, lambda row: f"{name} row {row}").groups(request.splitting.group, (), count=0)
    rows = request.splitting.rows(digits.targets, request.split, origin=name, classes=digits.classes)
    names, index = match_classes(digits.classes, request.classes, origin=name)
    source = DatasetSource(
        {name: digits},
        digits.targets,
        rows=rows,
        classes=names,
        labels=np.asarray(index)[digits.targets[rows]],
        mirrorable=False,  # a mirrored 2 is not a 2
    )
    source.is_cut = True
    return source
