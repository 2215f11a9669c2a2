"""What one head answers to labelled images, summed up for figures: with one label per image, or several.

Shapes: N images, B of a batch, M whose logits are kept, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from conformer_vision.errors import UserError
from conformer_vision.inference.calibration import BINS, bins_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Head(ABC):
    """The answers of one head to N images, as far as logits tell."""

    logits: Tensor
    """(M, K) float32, of the images that are kept, before the temperature."""
    temperature: float

    @property
    @abstractmethod
    def said(self) -> Array:
        """The answers, in the form of `AnswersOf.labels`."""

    @abstractmethod
    def probabilities(self) -> Array:
        """Compute the probabilities (M, K) float32 of the images that are kept."""

    @abstractmethod
    def scores(self, number: int) -> Array:
        """Compute what orders the images (M,) by the probability of a class, in float64.

        In float32 many probabilities of a good model are 1, and could not be ordered.
        """


@dataclass(frozen=True)
class HeadAnswers(Head):
    """The answers of one head to N images of one label each, with probabilities at the head's temperature."""

    predicted: Array
    """(N,) int64, the class with the highest logit."""
    rank: Array
    """(N,) int64, how many classes come before the true one."""
    confidence: Array
    """(N,) float32, probability of the predicted class."""
    log_likelihood: Array
    """(N,) float32, logarithm of the probability of the true class, in nats."""
    squares: Array
    """(N,) float32, sum of the squared probabilities of all classes."""

    @property
    def said(self) -> Array:
        """(N,) int64, the predicted classes."""
        return self.predicted

    def probabilities(self) -> Array:
        """Compute the probabilities (M, K) float32 of the images that are kept."""
        probabilities: Array = (self.logits / self.temperature).softmax(dim=1).numpy()
        return probabilities

    def scores(self, number: int) -> Array:
        """Compute the logarithms (M,) of the probabilities of a class, in float64."""
        scores: Array = (self.logits[:, number].double() / self.temperature - self._sums).numpy()
        return scores

    @cached_property
    def _sums(self) -> Tensor:
        """(M,) float64, what makes logarithms of probabilities of the logits; by part, to save memory."""
        parts = self.logits.split(1024)
        return torch.cat([(part.double() / self.temperature).logsumexp(dim=1) for part in parts])


@dataclass(frozen=True)
class MultilabelHead(Head):
    """The answers of one head to N images of any number of labels."""

    present: Array
    """(N, K) bool, whether the image has the class, by its threshold."""
    squares: Array
    """(N,) float32, squared distance of the probabilities from the truth, the mean over the classes."""
    losses: Array
    """(N,) float32, binary cross-entropy in nats, the mean over the classes."""
    gaps: Array
    """(N, BINS) float32, sum of the probabilities in a bin, less the number of these classes that it has."""

    @property
    def said(self) -> Array:
        """(N, K) bool, the classes that are present."""
        return self.present

    def probabilities(self) -> Array:
        """Compute the probabilities (M, K) float32 of the images that are kept."""
        probabilities: Array = (self.logits / self.temperature).sigmoid().numpy()
        return probabilities

    def scores(self, number: int) -> Array:
        """Return the logits (M,) of a class, in float64."""
        scores: Array = self.logits[:, number].double().numpy()
        return scores


H = TypeVar("H", bound=Head)


class Kind(ABC, Generic[H]):
    """How what a head answers is summed up, for one or for any number of labels per image."""

    @abstractmethod
    def truth(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels of a batch as `AnswersOf.labels` has them.

        Args:
            labels: (B,) int64, or (B, K) of 0 and 1.
            classes: K.

        Raises:
            UserError: They are of the other kind.
        """

    @abstractmethod
    def columns(self, logits: Tensor, truth: Tensor, temperature: float) -> dict[str, Tensor]:
        """Return, on the CPU, what most figures need of a batch: the fields of the head but the logits."""

    @abstractmethod
    def head(self, columns: Mapping[str, Array], logits: Tensor, temperature: float) -> H:
        """Make the answers of a head of all images."""


class OneLabel(Kind[HeadAnswers]):
    """Every image has one class."""

    def truth(self, labels: Tensor, classes: int) -> Tensor:
        """Return the labels (B,)."""
        if labels.ndim != 1:
            raise UserError(
                "the images have any number of labels each, and the model was trained on one per image; give "
                "images with one label each, or a model that was trained on several"
            )
        return labels

    def columns(self, logits: Tensor, truth: Tensor, temperature: float) -> dict[str, Tensor]:
        """Return the columns of a batch."""
        true = logits.gather(1, truth[:, None])
        # As for argmax, the first of equal classes comes first.
        before = (logits == true) & (torch.arange(logits.shape[1], device=logits.device) < truth[:, None])
        logs = (logits / temperature).log_softmax(dim=1)
        probabilities = logs.exp()
        columns = {
            "predicted": logits.argmax(dim=1),
            "rank": ((logits > true) | before).sum(dim=1),
            "confidence": probabilities.max(dim=1).values,
            "log_likelihood": logs.gather(1, truth[:, None])[:, 0],
            "squares": probabilities.square().sum(dim=1),
        }
        return {name: column.cpu() for name, column in columns.items()}

    def head(self, columns: Mapping[str, Array], logits: Tensor, temperature: float) -> HeadAnswers:
        """Make the answers of a head of all images."""
        return HeadAnswers(logits, temperature, **columns)


class SeveralLabels(Kind[MultilabelHead]):
    """Every image has any number of the classes.

    All heads are cut at the same logits, whatever their temperatures: those at which the prediction is.

    Args:
        thresholds: (K,), the probability of the prediction from which on an image has a class.
        temperature: Of the prediction, for which the thresholds are.
    """

    def __init__(self, thresholds: Sequence[float], *, temperature: float = 1.0) -> None:
        self.cuts = torch.tensor(thresholds, dtype=torch.float64).logit() * temperature

    def truth(self, labels: Tensor, classes: int) -> Tensor:
        """Return which classes the images have, (B, K) bool; a single label is one of them."""
        return labels > 0 if labels.ndim == 2 else one_hot(labels, classes).bool()

    def columns(self, logits: Tensor, truth: Tensor, temperature: float) -> dict[str, Tensor]:
        """Return the columns of a batch."""
        scaled, target = logits.cpu() / temperature, truth.cpu().float()
        probabilities = scaled.sigmoid()
        gaps = torch.zeros(len(logits), BINS)
        gaps.scatter_add_(1, bins_of(probabilities), probabilities - target)
        return {
            "present": logits.cpu().double() >= self.cuts,
            "squares": (probabilities - target).square().mean(dim=1),
            "losses": binary_cross_entropy_with_logits(scaled, target, reduction="none").mean(dim=1),
            "gaps": gaps,
        }

    def head(self, columns: Mapping[str, Array], logits: Tensor, temperature: float) -> MultilabelHead:
        """Make the answers of a head of all images."""
        return MultilabelHead(logits, temperature, **columns)
