"""What the answers of a pass say: the worst errors, the classes taken for each other, the two branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from conformer_vision.inference.answers import Answers
from conformer_vision.inference.runtimes import FUSED

BRANCHES = ("conv", "trans")
CASES = ("both", "conv", "trans", "neither")
"""Which branch is right, in the order of the page."""


class Choices(NamedTuple):
    """A head's first choice for every image."""

    classes: Tensor
    """(N,) int64."""
    probabilities: Tensor
    """(N,)."""


@dataclass(frozen=True)
class Outcome:
    """The answers for all images of a pass, on the CPU."""

    labels: Tensor
    """(N,), true classes."""
    indices: Tensor
    """(N,), numbers in the source; -1 in a stream."""
    order: Tensor
    """(N,), numbers in the pass."""
    logits: Tensor
    """(N, K) of the prediction."""
    branches: dict[str, Choices]
    """``conv`` and ``trans``; empty for a model with one head."""

    def fused(self, temperature: float) -> Choices:
        """The prediction, with probabilities at a temperature."""
        best = (self.logits / temperature).softmax(dim=1).max(dim=1)
        return Choices(self.logits.argmax(dim=1), best.values)


class Collector:
    """Keeps the answers of a pass, of the branches only their first choices."""

    def __init__(self) -> None:
        self._parts: list[Answers] = []
        self._logits: list[Tensor] = []
        self._branches: dict[str, list[Choices]] = {}

    def add(self, part: Answers) -> None:
        """Takes in the answers for one batch."""
        self._logits.append(part.logits[FUSED].cpu())
        for name in BRANCHES:
            if name in part.logits:
                best = part.logits[name].softmax(dim=1).max(dim=1)
                choices = Choices(best.indices.cpu(), best.values.cpu())
                self._branches.setdefault(name, []).append(choices)
        self._parts.append(Answers({}, part.labels.cpu(), part.indices, part.order))

    def outcome(self) -> Outcome:
        """All of them; at least one batch was taken in."""
        return Outcome(
            labels=torch.cat([part.labels for part in self._parts]),
            indices=torch.cat([part.indices for part in self._parts]),
            order=torch.cat([part.order for part in self._parts]),
            logits=torch.cat(self._logits),
            branches={
                name: Choices(*(torch.cat(column) for column in zip(*parts, strict=True)))
                for name, parts in self._branches.items()
            },
        )


def worst_errors(outcome: Outcome, *, temperature: float, most: int) -> list[int]:
    """Rows of the wrong answers with the highest loss, worst first."""
    loss = cross_entropy(outcome.logits / temperature, outcome.labels, reduction="none")
    wrong = outcome.logits.argmax(dim=1) != outcome.labels
    return _highest(loss, wrong, most)


class Pair(NamedTuple):
    """Images of one class that were taken for another."""

    true: int
    predicted: int
    images: int
    share: float
    """Of the images of the true class."""


def confused_pairs(confusion: Sequence[Sequence[int]], *, most: int) -> list[Pair]:
    """The most frequent confusions, most frequent first; ``confusion`` as in `Evaluation`."""
    counts = torch.tensor(confusion)
    totals = counts.sum(dim=1)
    counts.fill_diagonal_(0)
    values, places = counts.flatten().topk(min(most, counts.numel()))
    return [
        Pair(place // len(counts), place % len(counts), count, count / int(totals[place // len(counts)]))
        for count, place in zip(values.tolist(), places.tolist(), strict=True)
        if count
    ]


class ClassRow(NamedTuple):
    """How one class fares."""

    label: int
    total: int
    right: int
    top1: float | None
    """None without images."""
    rival: Pair | None
    """What it is most often taken for."""


def class_rows(confusion: Sequence[Sequence[int]]) -> list[ClassRow]:
    """All classes, the worst first, those without images last."""
    rows = []
    for label, counts in enumerate(confusion):
        total, right = sum(counts), counts[label]
        wrong = [0 if i == label else count for i, count in enumerate(counts)]
        count = max(wrong)
        rival = Pair(label, wrong.index(count), count, count / total) if count else None
        rows.append(ClassRow(label, total, right, right / total if total else None, rival))
    return sorted(rows, key=lambda row: (row.top1 is None, row.top1 or 0.0, -row.total, row.label))


@dataclass(frozen=True)
class BranchCase:
    """The images for which certain branches are right."""

    case: str
    """One of `CASES`."""
    count: int
    fused_right: int
    """Of these the prediction is right."""
    rows: list[int]
    """Examples: those where the wrong branch is surest, or the right prediction least sure."""


@dataclass(frozen=True)
class BranchStudy:
    """Where two branches agree and which of them is right."""

    cases: dict[str, BranchCase]
    """By the names in `CASES`."""
    different: int
    """Images for which the branches name different classes."""
    conv_right: int
    """Of these, the convolution branch is right."""
    trans_right: int
    fused_right: int
    fused_neither: int
    """Of these, the prediction is a third class."""


def study_branches(outcome: Outcome, *, most: int) -> BranchStudy | None:
    """The comparison of the branches, with up to ``most`` examples each; None for a model with one head."""
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
            case: BranchCase(case, int(where.sum()), int((where & right).sum()), _highest(score, where, most))
            for case, (where, score) in cases.items()
        },
        different=int(different.sum()),
        conv_right=int((different & conv_right).sum()),
        trans_right=int((different & trans_right).sum()),
        fused_right=int((different & right).sum()),
        fused_neither=int((different & (predicted != conv.classes) & (predicted != trans.classes)).sum()),
    )


def _highest(score: Tensor, where: Tensor, most: int) -> list[int]:
    """Rows where ``where`` holds, by falling score; of equals the first."""
    rows = where.nonzero().flatten()
    order = score[rows].argsort(descending=True, stable=True)
    best: list[int] = rows[order][:most].tolist()
    return best
