"""Area under the ROC curve and average precision of a class against the others, for many sets of weights.

scikit-learn's functions take one set of weights at a time, and sort all images again for it. Here the images
of a class are sorted once, and the others are counted between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix

from conformer_vision.inference.intervals import Array


def rank(
    scores: Callable[[int], Array], labels: Array, classes: Sequence[int], weights: Array
) -> tuple[Array, Array]:
    """Compute AUROC and average precision, one against the rest, as scikit-learn defines them.

    Args:
        scores: Class -> (N,), what orders the images: the probability of the class, or what grows with it.
        labels: (N,), true classes; (N, K) bool where an image has any number of them.
        classes: C classes.
        weights: (N, B), B sets of weights.

    Returns:
        Both (C, B); NaN where the images of weight are all of the class, or none of them is.
    """
    shape = len(classes), weights.shape[1]
    areas, precisions = np.full(shape, np.nan, weights.dtype), np.full(shape, np.nan, weights.dtype)
    total = weights.sum(axis=0)
    for row, number in enumerate(classes):
        own = labels == number if labels.ndim == 1 else labels[:, number]
        if own.any() and not own.all():
            areas[row], precisions[row] = _rank_one(scores(number), own, weights, total)
    return areas, precisions


def _rank_one(scores: Array, own: Array, weights: Array, total: Array) -> tuple[Array, Array]:
    """Compute both for one class, from its images' scores (N,) and which images are its own."""
    thresholds, places = np.unique(scores[own], return_inverse=True)
    positives = _sums(places, np.flatnonzero(own), weights, len(thresholds))
    mine = positives.sum(axis=0)
    others = total - mine
    # Even places lie between two thresholds, odd ones are equal to one.
    between = np.searchsorted(thresholds, scores, "left") + np.searchsorted(thresholds, scores, "right")
    negatives = _other_sums(between, own, weights, 2 * len(thresholds) + 1, others)
    below = np.cumsum(negatives, axis=0)[0::2][:-1]
    equal = negatives[1::2]
    from_here = np.cumsum(positives[::-1], axis=0)[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        areas = (positives * (below + equal / 2)).sum(axis=0) / (mine * others)
        precision = from_here / (from_here + others - below)
        average = np.where(positives > 0, positives * precision, 0).sum(axis=0) / mine
    return areas, np.where(others > 0, average, np.nan)


def _other_sums(places: Array, own: Array, weights: Array, length: int, others: Array) -> Array:
    """Sum the weights of the other classes' images at each place; the fullest one gets what is left."""
    fullest = int(np.bincount(places[~own], minlength=length).argmax())
    rows = np.flatnonzero(~own & (places != fullest))
    summed = _sums(places[rows], rows, weights, length)
    summed[fullest] = others - summed.sum(axis=0)
    return summed


def _sums(places: Array, rows: Array, weights: Array, length: int) -> Array:
    """Sum the weights (N, B) of some rows at the place of each: (length, B)."""
    ones = np.ones(len(rows), weights.dtype)
    summed: Array = csr_matrix((ones, (places, rows)), shape=(length, len(weights))) @ weights
    return summed
