"""Fit to validation images which classes are in a set; `runtime.conformal` says what sets are.

Shapes: N images, K classes.
"""

from __future__ import annotations

import numpy as np

from conformer_vision.runtime.base import Array
from conformer_vision.runtime.conformal import class_scores
from conformer_vision.thresholds import SetRule, SortedScores

PENALTY = 0.01
"""For each rank behind the first `FREE`, as in the paper: keeps sets short where there are many classes."""
FREE = 5


def fit_sets(probabilities: Array, labels: Array, *, penalty: float = PENALTY, free: int = FREE) -> SetRule:
    """Fit the rule to validation images.

    Args:
        probabilities: (N, K) of the prediction, as the sets will be made of.
        labels: (N,), true classes.
        penalty: See `SetRule`.
        free: See `SetRule`.
    """
    scores = np.take_along_axis(class_scores(probabilities, penalty=penalty, free=free), labels[:, None], 1)
    return SetRule(SortedScores.of(scores[:, 0].tolist()), penalty, free)
