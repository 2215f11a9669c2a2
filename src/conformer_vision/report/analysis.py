"""Analyse predictions: the worst errors, the weakest classes, the two branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from conformer_vision.inference.answers import Answers
from conformer_vision.inference.confusion import Pair, confused_pairs
from conformer_vision.inference.evaluation import Evaluation
from conformer_vision.inference.metrics import ClassFigures
from conformer_vision.runtime.base import FUSED

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
    places: Tensor
    """(N,), positions among the images that could be read, of which these are some or all."""
    logits: Tensor
    """(N, K), fused."""
    branches: dict[str, Choices]
    """``conv`` and ``trans``; empty for a model with one head."""

    def fused(self, temperature: float) -> Choices:
        """Return the fused prediction, with probabilities at a temperature."""
        best = (self.logits / temperature).softmax(dim=1).max(dim=1)
        return Choices(self.logits.argmax(dim=1), best.values)


def outcome_of(answers: Answers) -> Outcome:
    """Return the predictions for the images whose logits are kept."""
    kept = answers.kept
    branches = {
        name: Choices(torch.from_numpy(head.predicted[kept]), torch.from_numpy(head.confidence[kept]))
        for name, head in answers.heads.items()
        if name in BRANCHES
    }
    labels, indices, order = (
        torch.from_numpy(column[kept]) for column in (answers.labels, answers.indices, answers.order)
    )
    return Outcome(labels, indices, order, torch.from_numpy(kept), answers.heads[FUSED].logits, branches)


def worst_errors(outcome: Outcome, *, temperature: float, most: int) -> list[int]:
    """Return the rows of wrong predictions with the highest loss, worst first."""
    loss = cross_entropy(outcome.logits / temperature, outcome.labels, reduction="none")
    wrong = outcome.logits.argmax(dim=1) != outcome.labels
    return _highest(loss, wrong, most)


def sample_rows(outcome: Outcome, *, most: int) -> list[int]:
    """Return some rows, as many of every class; of more classes than ``most``, one each of some."""
    classes = outcome.labels.unique()
    drawn = classes[evenly(len(classes), most)].tolist()
    each = most // len(drawn)
    rows = []
    for label in drawn:
        own = (outcome.labels == label).nonzero()[:, 0]
        rows += own[evenly(len(own), each)].tolist()
    return rows


def evenly(length: int, most: int) -> Tensor:
    """Return up to ``most`` places, evenly drawn from so many."""
    return torch.linspace(0, length - 1, min(most, length)).round().long()


class ClassRow(NamedTuple):
    """The figures of one class."""

    name: str
    images: int
    right: int
    figures: ClassFigures | None
    """None without images."""
    rival: Pair | None
    """What it is most often mistaken for."""


def class_rows(evaluation: Evaluation) -> list[ClassRow]:
    """Return all classes, lowest F1 of the prediction first, those without images last."""
    confusion = evaluation.confusion
    rivals = {pair.true: pair for pair in reversed(confused_pairs(confusion))}
    rows = [
        ClassRow(
            name,
            sum(confusion.get(name, {}).values()),
            confusion.get(name, {}).get(name, 0),
            figures,
            rivals.get(name),
        )
        for name, figures in evaluation.heads[FUSED].classes.items()
    ]
    return sorted(rows, key=lambda row: (row.figures is None, _f1(row.figures), -row.images))


def _f1(figures: ClassFigures | None) -> float:
    return 0.0 if figures is None or figures.f1.value is None else figures.f1.value


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
