"""Scores of a validation, over all of its batches and all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat

from ..data.base import NOT_COUNTED, is_counted
from ..inference.intervals import TOP5_FROM, Figure, share, share_of_groups
from ..inference.multilabel_metrics import ranked_figures


class Summary(NamedTuple):
    """What a validation came to."""

    values: dict[str, Tensor | float]
    """The mean loss, and the scores by name and head, such as `top1_conv`."""
    figures: dict[str, Figure]
    """These scores with their intervals."""
    classes: list[dict[str, Any]]
    """Of every class, by the fused head: its number of images and, last, the figure that ranks it."""


class Scores(nn.Module, ABC):
    """Mean loss, and scores of every head.

    Args:
        heads: names of the heads.
        num_classes: K.
        groups: the group of every image, by its number, for the intervals; None without groups.
    """

    def __init__(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> None:
        super().__init__()
        self.heads = tuple(heads)
        self.num_classes = num_classes
        self.groups = groups
        self.loss = MeanMetric()

    def update(self, logits: dict[str, Tensor], loss: Tensor, target: Tensor, indices: Tensor | None) -> None:
        """Add a batch.

        Args:
            logits: by head, (B, K).
            loss: the mean over the images that are counted.
            target: labels (B,) or (B, K); see `is_counted`.
            indices: numbers of the images (B,), where there are groups.
        """
        counted = int(is_counted(target).sum())
        if counted:
            self.loss.update(loss, weight=counted)
        self._add(logits, target, indices)

    @abstractmethod
    def _add(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor | None) -> None: ...

    @abstractmethod
    def summary(self) -> Summary:
        """Return what all batches came to; all processes must ask."""

    def reset(self) -> None:
        """Begin anew."""
        for metric in self.modules():
            if isinstance(metric, Metric):
                metric.reset()


class OneLabelScores(Scores):
    """Top-1 and top-5 accuracy of every head; recall of every class."""

    def __init__(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> None:
        super().__init__(heads, num_classes, groups)
        self.by_class = _ByClass(num_classes)
        ks = (1, 5) if num_classes >= TOP5_FROM else (1,)
        self.accuracy = nn.ModuleDict(
            {
                f"top{k}_{head}": MulticlassAccuracy(
                    num_classes, top_k=k, average="micro", ignore_index=NOT_COUNTED
                )
                for k in ks
                for head in heads
            }
        )
        self.by_group = None if groups is None else _ByGroup(groups, list(self.accuracy))

    def _add(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor | None) -> None:
        if not is_counted(target).any():
            return
        self.by_class.update(logits["fused"], target)
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            metric.update(logits[name.partition("_")[2]], target)
        if self.by_group is not None:
            assert indices is not None
            self.by_group.update(logits, target, indices)

    def summary(self) -> Summary:
        """Return what all batches came to."""
        images, correct = self.by_class.compute().tolist()
        values: dict[str, Tensor | float] = {"loss": self.loss.compute()}
        for name, metric in self.accuracy.items():
            assert isinstance(metric, MulticlassAccuracy)
            values[name] = metric.compute()
        classes = [
            {"images": many, "correct": right, "recall": asdict(share(right, many))}
            for many, right in zip(images, correct, strict=True)
        ]
        return Summary(values, self._shares(values, sum(images)), classes)

    def _shares(self, values: dict[str, Tensor | float], images: int) -> dict[str, Figure]:
        """Return every accuracy with its interval: of so many images or, where there are any, of groups."""
        if self.by_group is not None:
            total, *correct = self.by_group.compute().tolist()
            return {
                name: share_of_groups(right, total)
                for name, right in zip(self.accuracy, correct, strict=True)
            }
        return {name: share(round(float(values[name]) * images), images) for name in self.accuracy}


class SeveralLabelScores(Scores):
    """Mean average precision (mAP) of every head; average precision of every class."""

    def __init__(self, heads: Sequence[str], num_classes: int, groups: Sequence[str] | None) -> None:
        super().__init__(heads, num_classes, groups)
        self.answers = _Answers(self.heads)

    def _add(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor | None) -> None:
        assert indices is not None or self.groups is None
        # Also without an image that counts: a process without any would leave the others waiting.
        self.answers.update(logits, target, torch.full((len(target),), -1) if indices is None else indices)

    def summary(self) -> Summary:
        """Return what all batches came to."""
        logits, truth, indices = self.answers.compute()
        groups = None if self.groups is None else [self.groups[number] for number in indices.tolist()]
        ranked = ranked_figures(logits, truth, groups=groups)
        figures = {f"map_{head}": found.map for head, found in ranked.items()}
        by_class = ranked["fused"].classes
        return Summary(
            {"loss": self.loss.compute()}
            | {name: float("nan") if each.value is None else each.value for name, each in figures.items()},
            figures,
            [
                {"images": int(many), "average_precision": asdict(precision)}
                for many, precision in zip(truth.sum(dim=0), by_class, strict=True)
            ],
        )


class _ByClass(Metric):
    """Images per class, and correct answers; torchmetrics' own counts take memory per pair of classes."""

    images: Tensor
    correct: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        for name in ("images", "correct"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor) -> None:
        counted = target != NOT_COUNTED
        target = target[counted]
        right = logits[counted].argmax(1) == target
        self.images += torch.bincount(target, minlength=len(self.images))
        self.correct += torch.bincount(target[right], minlength=len(self.correct))

    def compute(self) -> Tensor:
        return torch.stack([self.images, self.correct])


class _ByGroup(Metric):
    """Images per group, and correct answers by accuracy.

    Args:
        groups: of each image, by its number.
        names: of the accuracies, as `top1_conv`.
    """

    counts: Tensor

    def __init__(self, groups: Sequence[str], names: Sequence[str]) -> None:
        super().__init__()
        numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        self.names = list(names)
        of_images = torch.tensor([numbers[group] for group in groups])
        self.register_buffer("numbers", of_images, persistent=False)
        zeros = torch.zeros(1 + len(names), len(numbers), dtype=torch.long)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor) -> None:
        counted = target != NOT_COUNTED
        assert isinstance(self.numbers, Tensor)
        groups = self.numbers[indices.to(self.numbers.device)[counted]]
        found = [groups]
        for name in self.names:
            rank, _, head = name.removeprefix("top").partition("_")
            best = logits[head][counted].topk(int(rank), dim=1).indices
            found.append(groups[(best == target[counted][:, None]).any(dim=1)])
        self.counts += torch.stack([torch.bincount(each, minlength=self.counts.shape[1]) for each in found])

    def compute(self) -> Tensor:
        return self.counts


class _Answers(Metric):
    """The logits of every head, with the truth: average precision needs all of them."""

    truth: list[Tensor] | Tensor
    indices: list[Tensor] | Tensor

    def __init__(self, heads: Sequence[str]) -> None:
        super().__init__()
        self.names = {head: f"logits_{head}" for head in heads}
        for name in (*self.names.values(), "truth", "indices"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: dict[str, Tensor], target: Tensor, indices: Tensor) -> None:
        counted = is_counted(target)
        rows = {self.names[head]: values.detach()[counted].float() for head, values in logits.items()}
        rows |= {"truth": target[counted] > 0, "indices": indices.to(target.device)[counted]}
        for name, values in rows.items():
            getattr(self, name).append(values)

    def compute(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the logits by head (N, K), the truth (N, K) bool and the numbers (N,), on the CPU."""

        def whole(name: str) -> Tensor:
            return dim_zero_cat(getattr(self, name)).cpu()

        return {head: whole(name) for head, name in self.names.items()}, whole("truth"), whole("indices")
