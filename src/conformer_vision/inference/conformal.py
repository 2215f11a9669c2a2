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

import torch
from torch import Tensor

from conformer_vision.thresholds import SetRule, SortedScores

PENALTY = 0.01
"""For each rank behind the first `FREE`, as in the paper: keeps sets short where there are many classes."""
FREE = 5


def class_scores(probabilities: Tensor, *, penalty: float, free: int) -> Tensor:
    """Compute the score of every class (B, K): low for those that belong into a set first.

    Args:
        probabilities: (B, K).
        penalty: See `SetRule`.
        free: See `SetRule`.
    """
    ordered, classes = probabilities.double().sort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, probabilities.shape[1] + 1, device=probabilities.device)
    scores = ordered.cumsum(dim=1) - ordered / 2 + penalty * (ranks - free).clamp(min=0)
    return torch.empty_like(scores).scatter(1, classes, scores)


def fit_sets(probabilities: Tensor, labels: Tensor, *, penalty: float = PENALTY, free: int = FREE) -> SetRule:
    """Fit the rule to validation images.

    Args:
        probabilities: (N, K) of the prediction, as the sets will be made of.
        labels: (N,), true classes.
        penalty: See `SetRule`.
        free: See `SetRule`.
    """
    scores = class_scores(probabilities, penalty=penalty, free=free).gather(1, labels[:, None])[:, 0]
    return SetRule(SortedScores.of(scores.tolist()), penalty, free)


def sets(probabilities: Tensor, rule: SetRule, *, error_rate: float) -> Tensor:
    """Tell which classes are in the set of every image: (B, K) bool, always the most probable one.

    Args:
        probabilities: (B, K) of the prediction.
        rule: Of the model.
        error_rate: Share of sets that may lack the true class.

    Raises:
        UserError: As `SetRule.threshold`.
    """
    found = class_scores(probabilities, penalty=rule.penalty, free=rule.free) <= rule.threshold(error_rate)
    return found.scatter(1, probabilities.argmax(dim=1, keepdim=True), True)
