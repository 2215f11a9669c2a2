"""Sets of classes that hold the true one with a chosen probability: conformal prediction.

RAPS, Angelopoulos et al., "Uncertainty Sets for Image Classifiers using Conformal Prediction", ICLR 2021;
without its penalty APS, Romano et al., "Classification with Valid and Adaptive Coverage", NeurIPS 2020. Both
draw a random share of a class's own probability; here it is always a half, the mean of that draw, so that an
image always gets the same set. Any score keeps the guarantee.

The guarantee is marginal: over many new images that are like the validation images (exchangeable with them),
the share of sets without the true class is at most the error rate. It does not hold for each class, nor for
images of other things, whose true class is in no set.

Shapes: B images, K classes.
"""

from __future__ import annotations

import numpy as np

from conformer_vision.thresholds import SetRule

from .base import Array
from .decisions import first_of


def class_scores(probabilities: Array, *, penalty: float, free: int) -> Array:
    """Compute the score of every class (B, K): low for those that belong into a set first.

    Args:
        probabilities: (B, K).
        penalty: See `SetRule`.
        free: See `SetRule`.
    """
    classes = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, classes, axis=1).astype(np.float64)
    ranks = np.arange(1, probabilities.shape[1] + 1)
    scores = ordered.cumsum(axis=1) - ordered / 2 + penalty * np.maximum(ranks - free, 0)
    found: Array = np.empty_like(scores)
    np.put_along_axis(found, classes, scores, axis=1)
    return found


def sets(probabilities: Array, rule: SetRule, *, error_rate: float) -> Array:
    """Tell which classes are in the set of every image: (B, K) bool, always the most probable one.

    Args:
        probabilities: (B, K) of the prediction.
        rule: Of the model.
        error_rate: Share of sets that may lack the true class.

    Raises:
        UserError: As `SetRule.threshold`.
    """
    found = class_scores(probabilities, penalty=rule.penalty, free=rule.free) <= rule.threshold(error_rate)
    members: Array = found | first_of(probabilities)
    return members
