"""scikit-learn's handwritten digits: real images that are there wherever the package is."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .base import ImageSource, match_classes
from .splits import Split, Splitting


class DigitsSource(ImageSource):
    """1,797 digits of the UCI test set, 8 × 8 pixels, grey values 0..16 scaled to 0..255."""

    mirrorable = False  # a mirrored 2 is not a 2

    def __init__(self, *, split: Split, splitting: Splitting, classes: Sequence[str] | None) -> None:
        import numpy as np
        from sklearn.datasets import load_digits

        digits = load_digits()
        rows = splitting.rows(digits.target, split, origin="digits")
        names, index = match_classes([str(name) for name in digits.target_names], classes, origin="digits")
        super().__init__(names, (index[label] for label in digits.target[rows]))
        self._rows = rows
        self._pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)

    def image(self, index: int) -> Image.Image:
        """RGB image of 8 × 8 pixels."""
        return Image.fromarray(self._pixels[index]).convert("RGB")

    def name(self, index: int) -> str:
        """``digits row N``, N counted in the whole set."""
        return f"digits row {self._rows[index]}"
