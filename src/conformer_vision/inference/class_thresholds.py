"""From which probability on an image has a class: the threshold with the highest F1 on validation images.

Shapes: N images, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.metrics import precision_recall_curve
from sklearn.model_selection import KFold

from conformer_vision.errors import some_names
from conformer_vision.inference.answers import MultilabelAnswers
from conformer_vision.inference.heads import Array
from conformer_vision.runtime.base import FUSED
from conformer_vision.thresholds import UNFITTED, ClassThresholds


def fit_class_thresholds(
    probabilities: Array, truth: Array, *, input_size: tuple[int, int]
) -> ClassThresholds:
    """Fit the threshold of every class to images that the model was not trained on.

    Args:
        probabilities: (N, K), in [0, 1].
        truth: (N, K) bool, which classes each image has. A class that no image has keeps `UNFITTED`.
        input_size: Height and width of the images as the network saw them.
    """
    values = [
        best_threshold(probabilities[:, k].astype(float), truth[:, k]) if truth[:, k].any() else UNFITTED
        for k in range(truth.shape[1])
    ]
    return ClassThresholds(tuple(values), tuple(truth.sum(axis=0).tolist()), input_size)


def best_threshold(probabilities: Array, truth: Array) -> float:
    """Return the threshold with the highest F1, of several the one nearest to 0.5.

    It lies half-way between two neighbouring probabilities: every number between them gives the same answers.

    Args:
        probabilities: (N,), in [0, 1].
        truth: (N,) bool, true for at least one image.
    """
    precision, recall, found = precision_recall_curve(truth, probabilities)
    precision, recall = precision[:-1], recall[:-1]  # the last are those of no image at all
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    below = np.append(0.0, found[:-1])
    halfway = (found + below) / 2
    halfway = np.where(halfway > below, halfway, found)  # of neighbours in float64 it may be the lower one
    inside = (halfway > 0) & (halfway < 1)
    best = np.flatnonzero(inside & (f1 >= f1.max(where=inside, initial=0.0) - 1e-12))
    if not len(best):
        return UNFITTED
    return float(halfway[best[np.abs(halfway[best] - UNFITTED).argmin()]])


def unfitted_note(thresholds: ClassThresholds, classes: tuple[str, ...]) -> str | None:
    """Say which classes keep the threshold of 0.5, as no validation image has them; None without such."""
    pairs = zip(classes, thresholds.positives, strict=True)
    if not (without := [name for name, count in pairs if not count]):
        return None
    return f"no validation image has the class {some_names(without)}, whose threshold stays {UNFITTED:g}"


def at_fitted_thresholds(answers: MultilabelAnswers, *, seed: int = 0) -> MultilabelAnswers | None:
    """Return the answers at thresholds that are fitted to other images of them, for honest figures.

    Each half of the images is answered at the thresholds of the other half (two-fold cross-fitting). They are
    those of the prediction, at the temperature of the answers, and serve all heads.

    Args:
        answers: To the images.
        seed: Seed of the halves.

    Returns:
        None where the logits were not all kept, or of fewer than two images.
    """
    if not answers.whole or len(answers.labels) < 2:
        return None
    probabilities = {name: head.probabilities() for name, head in answers.heads.items()}
    present = {name: head.present.copy() for name, head in answers.heads.items()}
    for fitted, held_out in KFold(2, shuffle=True, random_state=seed).split(answers.labels):
        found = fit_class_thresholds(probabilities[FUSED][fitted], answers.labels[fitted], input_size=(1, 1))
        for name, own in probabilities.items():
            present[name][held_out] = own[held_out] >= np.array(found.values)
    heads = {name: replace(head, present=present[name]) for name, head in answers.heads.items()}
    return replace(answers, heads=heads)
