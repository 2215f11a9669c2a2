"""Images of several labels: squares of colours, each of which is a class."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


class Squares(Dataset[Any]):
    """Noisy images of 36 pixels with a square for each of their colours, in a corner of its own.

    Args:
        number: of images.
        seed: of the colours and the noise.
    """

    classes = tuple(COLOURS)

    def __init__(self, number: int = 48, *, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        chosen = rng.random((number, len(COLOURS))) < 0.4
        chosen[:2] = [[True] * len(COLOURS), [False] * len(COLOURS)]
        self.targets = [tuple(np.flatnonzero(row).tolist()) for row in chosen]
        self.pixels = rng.integers(60, 100, (number, 36, 36, 3)).astype(np.uint8)
        for row, label in enumerate(self.targets):
            for each in label:
                top, left = 18 * (each // 2) + 2, 18 * (each % 2) + 2
                noise = rng.integers(-25, 26, (14, 14, 3))
                square = np.array(list(COLOURS.values())[each]) + noise
                self.pixels[row, top : top + 14, left : left + 14] = square.clip(0, 255)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, tuple[int, ...]]:
        return Image.fromarray(self.pixels[index]), self.targets[index]
