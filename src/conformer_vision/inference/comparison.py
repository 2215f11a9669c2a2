"""Two models on the same images: whether one is better than the other, or luckier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import binomtest, permutation_test

from conformer_vision.inference.answers import Answers
from conformer_vision.inference.intervals import TOP5_FROM, Array, Figure, Resamples, figure, percentiles
from conformer_vision.inference.metrics import METRICS, HeadFigures, Sums, head_figures
from conformer_vision.runtime.base import FUSED

MOST_SIGNS = 9_999
"""Choices of the groups' signs that are tried: all of up to 13 groups, else as many that are drawn."""


@dataclass(frozen=True)
class Contrast:
    """The figures of one head of two models, A and B."""

    a: HeadFigures
    b: HeadFigures
    difference: dict[str, Figure]
    """Metric -> B less A; its interval is that of the differences in the same resamples of both."""


@dataclass(frozen=True)
class PairedTest:
    """How many images each model is right about, and whether the difference is chance.

    Without groups this is the exact test of McNemar (1947): of the images that only one model is right about,
    each falls to either with probability one half. The images of a group are not independent, so with groups
    each whole group does: its surplus of images for one model changes sign, as a block of the sign-flipping
    test of Winkler et al., "Permutation inference for the general linear model", NeuroImage 2014. With groups
    of a single image both are the same.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    """Chance of counts ``only_a`` and ``only_b`` so far apart if the models were equally good."""
    groups: int | None
    """Number of groups of images; None without groups."""


@dataclass(frozen=True)
class Turn:
    """An image that one model answers right and the other wrong."""

    row: int
    """Its number among the images."""
    name: str
    truth: str
    a: str
    """Answer of A."""
    b: str


def contrast(a: Answers, b: Answers, classes: Sequence[str], *, seed: int = 0) -> dict[str, Contrast]:
    """Compare the heads that both models have.

    Args:
        a: Answers to some images.
        b: Answers to the same images in the same order, with the same numbers of classes.
        classes: Names of the classes.
        seed: Seed of the resamples.
    """
    shared = [head for head in a.heads if head in b.heads]
    of_a, of_b = (
        replace(each, heads={head: each.heads[head] for head in shared}, groups=a.groups) for each in (a, b)
    )
    resamples = Resamples(len(a.labels), groups=a.groups, classes=len(classes), seed=seed)
    filled = np.unique(a.labels)
    drawn: dict[str, list[Array]] = {head: [] for head in shared}
    for weights in resamples:
        for head in shared:
            drawn[head].append(_differences(of_a, of_b, head, filled, weights))
    figures_a, figures_b = (head_figures(each, classes, seed=seed) for each in (of_a, of_b))
    ones = np.ones((len(a.labels), 1))
    found = {}
    for head in shared:
        values = _differences(of_a, of_b, head, filled, ones)[:, 0]
        low, high = percentiles(np.concatenate(drawn[head], axis=-1))
        differences = {
            metric.name: figure(*map(float, numbers))
            for metric, *numbers in zip(METRICS, values, low, high, strict=True)
        }
        if len(classes) < TOP5_FROM:
            del differences["top5"]
        found[head] = Contrast(figures_a[head], figures_b[head], differences)
    return found


def _differences(a: Answers, b: Answers, head: str, filled: Array, weights: Array) -> Array:
    """Return B less A for each of `METRICS` and each set of weights: (M, B)."""
    of_a, of_b = (Sums(each.heads[head], each, filled, weights) for each in (a, b))
    return np.stack([metric.compute(of_b) - metric.compute(of_a) for metric in METRICS])


def paired_test(a: Answers, b: Answers, *, seed: int = 0) -> PairedTest:
    """Count the images that each model answers right, and test whether the difference is chance.

    Args:
        a: Answers to some images; their groups count.
        b: Answers to the same images in the same order.
        seed: Of the signs that are drawn where there are too many groups to try all.
    """
    right_a, right_b = (each.heads[FUSED].rank == 0 for each in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    if a.groups is None:
        p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    else:
        p = _by_groups(right_b.astype(int) - right_a.astype(int), a.groups, seed=seed)
    both, neither = int((right_a & right_b).sum()), int((~right_a & ~right_b).sum())
    return PairedTest(
        both, only_a, only_b, neither, float(p), None if a.groups is None else len(set(a.groups))
    )


def _by_groups(differences: Array, groups: Sequence[str], *, seed: int) -> float:
    """Return the probability of a sum of differences (N,) so far from 0 if each group's sign were chance."""
    _, places = np.unique(np.array(groups, dtype=object), return_inverse=True)
    surplus = np.bincount(places, weights=differences)
    if len(surplus) < 2 or not surplus.any():
        return 1.0
    found = permutation_test(
        (surplus,),
        lambda signed, axis: np.abs(signed.sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=MOST_SIGNS,
        alternative="greater",
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def turns(a: Answers, b: Answers, classes: Sequence[str]) -> tuple[list[Turn], list[Turn]]:
    """Return the images that A alone answers right, and those of B alone; the surest mistakes first."""
    head_a, head_b = a.heads[FUSED], b.heads[FUSED]
    right_a, right_b = head_a.rank == 0, head_b.rank == 0

    def listed(rows: Array, wrong: Array) -> list[Turn]:
        return [
            Turn(
                row,
                a.names[row],
                classes[a.labels[row]],
                classes[head_a.predicted[row]],
                classes[head_b.predicted[row]],
            )
            for row in rows[np.argsort(-wrong[rows], kind="stable")].tolist()
        ]

    return (
        listed(np.flatnonzero(right_a & ~right_b), head_b.confidence),
        listed(np.flatnonzero(~right_a & right_b), head_a.confidence),
    )


def renumbered(answers: Answers, own: Sequence[str], wanted: Sequence[str]) -> Answers:
    """Return the answers with the classes in another order; both hold the same names."""
    if tuple(own) == tuple(wanted):
        return answers
    order = np.array([list(own).index(name) for name in wanted])
    places = np.argsort(order)
    heads = {
        name: replace(head, predicted=places[head.predicted], logits=head.logits[:, torch.from_numpy(order)])
        for name, head in answers.heads.items()
    }
    return replace(answers, heads=heads, labels=places[answers.labels])


def restricted(answers: Answers, names: Sequence[str]) -> Answers:
    """Return the answers to some of the images, by name and in their order; logits of all must be kept."""
    rows = {name: row for row, name in enumerate(answers.names)}
    taken = np.array([rows[name] for name in names])
    heads = {
        name: replace(
            head,
            predicted=head.predicted[taken],
            rank=head.rank[taken],
            confidence=head.confidence[taken],
            log_likelihood=head.log_likelihood[taken],
            squares=head.squares[taken],
            logits=head.logits[torch.from_numpy(taken)],
        )
        for name, head in answers.heads.items()
    }
    return replace(
        answers,
        heads=heads,
        labels=answers.labels[taken],
        indices=answers.indices[taken],
        order=answers.order[taken],
        kept=np.arange(len(taken)),
        names=list(names),
        groups=None if answers.groups is None else [answers.groups[row] for row in taken.tolist()],
    )
