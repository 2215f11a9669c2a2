"""Heat maps as images: a colour scale, and overlays on photos."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.explain.explainer import Explanation
from conformer_vision.geometry import Box

# Dark violet over red to pale yellow, even in lightness, for readers with any colour vision too.
_COLOURS = np.array(
    [
        (13, 8, 60),
        (84, 15, 109),
        (158, 42, 99),
        (215, 75, 62),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ],
    dtype=np.float32,
)
_OPACITY = 0.75
"""Of the strongest evidence on an overlay; weaker evidence is more transparent."""


def coloured(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Turn values (H, W) in [0, 1] into colours (H, W, 3)."""
    place = values.clip(0, 1) * (len(_COLOURS) - 1)
    before = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = (place - before)[..., None]
    mixed: NDArray[np.uint8] = (
        (_COLOURS[before] * (1 - share) + _COLOURS[before + 1] * share).round().astype(np.uint8)
    )
    return mixed


def heat_image(evidence: NDArray[np.float32]) -> Image.Image:
    """Draw evidence (H, W) in [0, 1] by itself."""
    return Image.fromarray(coloured(evidence))


def overlay(image: Image.Image, evidence: NDArray[np.float32]) -> Image.Image:
    """Lay evidence (H, W) in [0, 1] over its image, which is grey where there is none."""
    opacity = _opacity(evidence)[..., None]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    mixed = (1 - opacity) * grey + opacity * coloured(evidence)
    return Image.fromarray(mixed.round().astype(np.uint8))


def veil(evidence: NDArray[np.float32]) -> Image.Image:
    """Draw evidence (H, W) in [0, 1] with transparency (RGBA), to be laid over an image later."""
    alpha = (255 * _opacity(evidence)).round().astype(np.uint8)[..., None]
    return Image.fromarray(np.concatenate([coloured(evidence), alpha], axis=2))


def _opacity(evidence: NDArray[np.float32]) -> NDArray[np.float32]:
    opacity: NDArray[np.float32] = _OPACITY * np.sqrt(evidence.clip(0, 1))  # weak evidence stays visible
    return opacity


def explained(explanation: Explanation, label: str | None = None, *, edge: int = 1600) -> Image.Image:
    """Lay the evidence for a class over the image of an explanation.

    Args:
        explanation: From `Explainer`.
        label: One of its classes; the first by default.
        edge: Longest edge of the answer in pixels; larger images are made smaller.

    Raises:
        UserError: The class was not explained, or the image could not be read.
    """
    image = explanation.image
    if image is not None and max(image.size) > edge:
        scale = edge / max(image.size)
        small = image.resize([max(round(side * scale), 1) for side in image.size])
        explanation = replace(
            explanation, image=small, seen=Box(*(scale * place for place in explanation.seen))
        )
    evidence = explanation.evidence(label)  # refuses an image that could not be read
    assert explanation.image is not None
    return overlay(explanation.image, evidence)
