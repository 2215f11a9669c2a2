"""Analyse predictions: the worst errors, the weakest classes, the two branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from conformer_vision.inference.confusion import Confusion, Pair, confused_pairs
from conformer_vision.inference.evaluation import Answers
from conformer_vision.inference.runtimes import FUSED

BRANCHES = ("conv", "trans")


class Choices(NamedTuple):
    """The first choice of one head for every image."""

    classes: Tensor
    """(N,) int64."""
    probabilities: Tensor
    """(N,)."""


@dataclass(frozen=True)
class Outcome:
    """The predictions for some images, on the CPU."""

    labels: Tensor
    """(N,), true classes."""
    indices: Tensor
    """(N,), image numbers in the source; -1 in a stream."""
    order: Tensor
    """(N,), positions in the order of reading."""
    logits: Tensor
    """(N, K), fused."""
    branches: dict[str, Choices]
    """``conv`` and ``trans``; empty for a model with one head."""

    def fused(self, temperature: float) -> Choices:
        """Return the fused prediction, with probabilities at a temperature."""
        best = (self.logits / temperature).softmax(dim=1).max(dim=1)
        return Choices(self.logits.argmax(dim=1), best.values)


def first_choices(part: Answers, kept: Tensor) -> Outcome:
    """Keep the fused logits and the first choices of the branches for some images of a batch.

    Args:
        part: The batch.
        kept: (B,) bool, on the CPU.
    """
    logits = {head: values.cpu()[kept] for head, values in part.logits.items()}
    best = {name: logits[name].softmax(dim=1).max(dim=1) for name in BRANCHES if name in logits}
    branches = {name: Choices(found.indices, found.values) for name, found in best.items()}
    return Outcome(part.labels.cpu()[kept], part.indices[kept], part.order[kept], logits[FUSED], branches)


def join(parts: Sequence[Outcome]) -> Outcome:
    """Join the outcomes of one or more batches."""
    return Outcome(
        labels=torch.cat([part.labels for part in parts]),
        indices=torch.cat([part.indices for part in parts]),
        order=torch.cat([part.order for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        branches={
            name: Choices(*map(torch.cat, zip(*(part.branches[name] for part in parts), strict=True)))
            for name in parts[0].branches
        },
    )


def worst_errors(outcome: Outcome, *, temperature: float, most: int) -> list[int]:
    """Return the rows of wrong predictions with the highest loss, worst first."""
    loss = cross_entropy(outcome.logits / temperature, outcome.labels, reduction="none")
    wrong = outcome.logits.argmax(dim=1) != outcome.labels
    return _highest(loss, wrong, most)


class ClassRow(NamedTuple):
    """The accuracy of one class."""

    name: str
    total: int
    right: int
    top1: float | None
    """None without images."""
    rival: Pair | None
    """What it is most often mistaken for."""


def class_rows(confusion: Confusion, classes: Sequence[str]) -> list[ClassRow]:
    """Return all classes, worst first, those without images last."""
    rivals = {pair.true: pair for pair in reversed(confused_pairs(confusion))}
    rows = []
    for name in classes:
        counts = confusion.get(name, {})
        total, right = sum(counts.values()), counts.get(name, 0)
        rows.append(ClassRow(name, total, right, right / total if total else None, rivals.get(name)))
    return sorted(rows, key=lambda row: (row.top1 is None, row.top1 or 0.0, -row.total))


@dataclass(frozen=True)
class BranchCase:
    """The images for which a certain set of branches is right."""

    count: int
    fused_right: int
    """How many of these the fusion predicts right."""
    rows: list[int]
    """Examples: the most confident mistakes, or the least certain right predictions."""


@dataclass(frozen=True)
class BranchStudy:
    """Where the branches agree, and which of them is right."""

    cases: dict[str, BranchCase]
    """By the branches that are right: ``both``, ``conv``, ``trans``, ``neither``."""
    different: int
    """Images on which the branches disagree."""
    conv_right: int
    """How many of these the convolution branch predicts right."""
    trans_right: int
    fused_right: int
    fused_neither: int
    """For how many of these the fusion predicts a third class."""


def study_branches(outcome: Outcome, *, most: int) -> BranchStudy | None:
    """Compare the branches, with up to ``most`` examples per case; None for a model with one head."""
    if not outcome.branches:
        return None
    conv, trans = (outcome.branches[name] for name in BRANCHES)
    predicted, labels = outcome.logits.argmax(dim=1), outcome.labels
    conv_right, trans_right, right = conv.classes == labels, trans.classes == labels, predicted == labels
    true = outcome.logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    cases = {
        "both": (conv_right & trans_right, -true),
        "conv": (conv_right & ~trans_right, trans.probabilities),
        "trans": (~conv_right & trans_right, conv.probabilities),
        "neither": (~conv_right & ~trans_right, torch.minimum(conv.probabilities, trans.probabilities)),
    }
    different = conv.classes != trans.classes
    return BranchStudy(
        cases={
            case: BranchCase(int(where.sum()), int((where & right).sum()), _highest(score, where, most))
            for case, (where, score) in cases.items()
        },
        different=int(different.sum()),
        conv_right=int((different & conv_right).sum()),
        trans_right=int((different & trans_right).sum()),
        fused_right=int((different & right).sum()),
        fused_neither=int((different & (predicted != conv.classes) & (predicted != trans.classes)).sum()),
    )


def _highest(score: Tensor, where: Tensor, most: int) -> list[int]:
    """Return the rows where ``where`` holds, by descending score; ties in order."""
    order = score.argsort(descending=True, stable=True)
    best: list[int] = order[where[order]][:most].tolist()
    return best
