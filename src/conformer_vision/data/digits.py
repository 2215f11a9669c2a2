"""scikit-learn's handwritten digits: real images that are there wherever the package is."""

from __future__ import annotations

from .base import PixelSource, match_classes
from .splits import Request


def open_digits(name: str, request: Request) -> PixelSource:
    """Open the 1,797 digits of the UCI test set, 8 × 8 pixels, grey values 0..16 scaled to 0..255.

    They are called ``digits row N``, N counted in the whole set.

    Args:
        name: what messages call the set.
        request: which images to open.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = request.splitting.rows(digits.target, request.split, origin=name)
    own = [str(name) for name in digits.target_names]
    names, index = match_classes(own, request.classes, origin=name)
    return PixelSource(
        names,
        np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8),
        names=[f"{name} row {row}" for row in rows],
        labels=np.asarray(index)[digits.target[rows]],
        mirrorable=False,  # a mirrored 2 is not a 2
    )
