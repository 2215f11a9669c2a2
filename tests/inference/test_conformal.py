"""Conformal sets: by the definition, and their coverage on images like the validation images."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from conformer_vision.inference.conformal import fit_sets
from conformer_vision.runtime.base import Array
from conformer_vision.runtime.conformal import class_scores, sets

CLASSES = 12


def exchangeable(images: int, *, seed: int) -> tuple[Array, Array]:
    """Probabilities of a model that is overconfident, and true classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, CLASSES, generator=generator) * 1.5
    labels = torch.distributions.Categorical(logits=logits)
    torch.manual_seed(seed)
    return (3 * logits).softmax(dim=1).numpy(), labels.sample().numpy()


def test_scores_by_the_definition() -> None:
    """A plain loop over the classes in the order of their probability."""
    probabilities, _ = exchangeable(20, seed=0)
    found = class_scores(probabilities, penalty=0.07, free=2)
    for row, values in enumerate(probabilities.astype(float).tolist()):
        before = 0.0
        for rank, number in enumerate(sorted(range(CLASSES), key=lambda k: -values[k]), start=1):
            expected = before + values[number] / 2 + 0.07 * max(rank - 2, 0)
            assert float(found[row, number]) == pytest.approx(expected)
            before += values[number]


@pytest.mark.parametrize("penalty", [0.0, 0.05])
@pytest.mark.parametrize("error_rate", [0.05, 0.1, 0.3])
def test_coverage_on_held_out_images(error_rate: float, penalty: float) -> None:
    """Within the bounds of the binomial distribution, although the probabilities are wrong by design."""
    probabilities, labels = exchangeable(4000, seed=1)
    new, truth = exchangeable(4000, seed=2)
    rule = fit_sets(probabilities, labels, penalty=penalty, free=1)
    members = sets(new, rule, error_rate=error_rate)
    hits = int(members[np.arange(4000), truth].sum())
    # Twice the variance: of the new images and of those that the threshold is fitted to.
    spread = 4 * np.sqrt(2) * binom.std(4000, error_rate)
    low, high = (4000 * (1 - error_rate) + side * spread for side in (-1, 1))
    assert low <= hits <= high
    assert int(members.sum(1).min()) >= 1 and int(members.sum(1).max()) <= CLASSES


def test_sets_grow_as_the_error_rate_falls_and_start_with_the_prediction() -> None:
    probabilities, labels = exchangeable(500, seed=3)
    rule = fit_sets(probabilities, labels)
    smaller, larger = (sets(probabilities, rule, error_rate=rate) for rate in (0.2, 0.05))
    assert bool((smaller <= larger).all()) and int(larger.sum()) > int(smaller.sum())
    ranks = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(larger, ranks, axis=1)
    assert bool(ordered[:, 0].all())
    assert bool((ordered[:, 1:] <= ordered[:, :-1]).all()), "a set is the most probable classes"


def test_a_single_class_and_equal_probabilities() -> None:
    one = fit_sets(np.ones((60, 1)), np.zeros(60, dtype=int))
    assert sets(np.ones((3, 1)), one, error_rate=0.1).all()
    equal = np.full((60, 4), 0.25)
    rule = fit_sets(equal, np.arange(60) % 4)  # rank 31 of 60 scores, 15 of them for each rank
    assert sets(equal, rule, error_rate=0.5).sum(1).tolist() == [3] * 60
