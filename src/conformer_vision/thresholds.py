"""What a model's answers are held against, fitted to images that it was not trained on.

They travel in the specification of a model. Nothing here imports torch.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from conformer_vision.errors import UserError, reason_of

_TAIL = 20
"""Scores that are kept at each end of a long list, besides those at whole percents."""


@dataclass(frozen=True)
class SortedScores:
    """The scores of some images in ascending order, of a long list those that thresholds are taken from.

    A new image, if it is like these (exchangeable), is equally likely to come before, between or after them.
    This alone gives the thresholds, whatever the scores are (Vovk et al. 2005, Algorithmic Learning in a
    Random World).

    Raises:
        UserError: The lists do not describe sorted scores.
    """

    images: int
    ranks: tuple[int, ...]
    """Places of the scores among those of all images, from 1, ascending."""
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("ranks", "scores"):
            value = getattr(self, name)
            _require(isinstance(value, (list, tuple)), f"{name} must be a list, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        whole = all(type(rank) is int for rank in (self.images, *self.ranks))
        _require(whole and self.images > 0 and bool(self.ranks), "images and ranks must be whole numbers")
        ascending = all(low < high for low, high in zip(self.ranks, self.ranks[1:], strict=False))
        _require(ascending and self.ranks[0] >= 1 and self.ranks[-1] <= self.images, "ranks must ascend")
        _require(len(self.scores) == len(self.ranks), "there must be one score for each rank")
        _require(all(is_finite(score) for score in self.scores), "scores must be numbers")
        _require(list(self.scores) == sorted(self.scores), "scores must ascend")

    @classmethod
    def of(cls, scores: Sequence[float]) -> SortedScores:
        """Sort the scores, and of many keep the ends and those for whole percents."""
        images = len(scores)
        ranks = {*range(1, min(_TAIL, images) + 1), *range(max(images - _TAIL, 0) + 1, images + 1)}
        for percent in range(1, 100):
            place = (images + 1) * percent / 100
            ranks |= {math.floor(place), math.ceil(place)}
        kept = sorted(rank for rank in ranks if 1 <= rank <= images)
        ordered = sorted(scores)
        return cls(images, tuple(kept), tuple(float(ordered[rank - 1]) for rank in kept))

    def low(self, share: float) -> float:
        """Return a threshold below which a new image comes with a probability of at most ``share``.

        Of too few images it is minus infinity: nothing comes below it.
        """
        found = bisect_right(self.ranks, _floor((self.images + 1) * share))
        return self.scores[found - 1] if found else -math.inf

    def high(self, share: float) -> float:
        """Return a threshold above which a new image comes with a probability of at most ``share``.

        Of too few images it is infinity: nothing comes above it.
        """
        found = bisect_left(self.ranks, _ceil((self.images + 1) * (1 - share)))
        return self.scores[found] if found < len(self.ranks) else math.inf


@dataclass(frozen=True)
class RejectRule:
    """A score of answers, the sum of some signals: an answer whose score is low is unsure.

    Raises:
        UserError: A value is invalid; the line names it.
    """

    signals: dict[str, tuple[float, float]]
    """Name of each signal, with its mean and standard deviation on the validation images."""
    scores: SortedScores
    """Of the validation images: the sum of the signals, each less its mean and in standard deviations."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", read(SortedScores, self.scores))
        _require(isinstance(self.signals, dict) and self.signals, "signals must be an object of names")
        for name, values in self.signals.items():
            pair = isinstance(values, (list, tuple)) and len(values) == 2 and all(map(is_finite, values))
            _require(pair and values[1] > 0, f"signal {name} must have a mean and a standard deviation")
        signals = {name: (float(mean), float(spread)) for name, (mean, spread) in self.signals.items()}
        object.__setattr__(self, "signals", signals)

    def threshold(self, coverage: float) -> float:
        """Return the score below which an answer is unsure, so that this share of answers is not."""
        return self.scores.low(1 - coverage)


@dataclass(frozen=True)
class SetRule:
    """Which classes are in the set of an image: RAPS (Angelopoulos et al., ICLR 2021).

    The score of a class is the sum of the probabilities of the more probable classes and half its own, plus a
    penalty for each rank behind the first ``free``. Without a penalty this is APS (Romano et al., NeurIPS
    2020).

    Raises:
        UserError: A value is invalid; the line names it.
    """

    scores: SortedScores
    """Of the true classes of the validation images."""
    penalty: float
    free: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", read(SortedScores, self.scores))
        _require(is_finite(self.penalty) and self.penalty >= 0, "penalty must be 0 or more")
        _require(type(self.free) is int and self.free >= 0, "free must be a whole number from 0")

    def threshold(self, error_rate: float) -> float:
        """Return the highest score of a class in a set, so that this share of sets lacks the true class.

        Raises:
            UserError: The error rate is no share, or smaller than so few images can tell.
        """
        check_share("conformal", error_rate)
        found = self.scores.high(error_rate)
        if math.isinf(found):
            images = self.scores.images
            least = math.ceil(1e4 / (images + 1)) / 1e4
            raise UserError(
                f"conformal {error_rate:g}: {images} validation images tell no error rate below {least:g}"
            )
        return found


@dataclass(frozen=True)
class Thresholds:
    """What was fitted on the validation images of a model besides its temperature.

    Raises:
        UserError: A value is invalid; the line names it.
    """

    reject: tuple[RejectRule, ...]
    """The first whose signals can be computed holds: an export has no pooled features."""
    sets: SetRule
    input_size: tuple[int, int]
    """Height and width of the validation images as the network saw them."""
    coverage: float = 0.95
    """Share of images like those that is answered, unless another is asked for."""

    def __post_init__(self) -> None:
        _require(isinstance(self.reject, (list, tuple)) and self.reject, "reject must be a list of rules")
        object.__setattr__(self, "reject", tuple(read(RejectRule, rule) for rule in self.reject))
        object.__setattr__(self, "sets", read(SetRule, self.sets))
        object.__setattr__(self, "input_size", _size(self.input_size))
        check_share("coverage", self.coverage)


@dataclass(frozen=True)
class ClassThresholds:
    """From which probability on an image has a class, of a model of several labels per image.

    Raises:
        UserError: A value is invalid; the line names it.
    """

    values: tuple[float, ...]
    """Of every class, in (0, 1)."""
    positives: tuple[int, ...]
    """Of every class, the number of validation images that have it; without any it keeps `UNFITTED`."""
    input_size: tuple[int, int]
    """Height and width of the validation images as the network saw them."""

    def __post_init__(self) -> None:
        for name in ("values", "positives"):
            value = getattr(self, name)
            _require(isinstance(value, (list, tuple)), f"{name} must be a list, not {value!r:.50}")
            object.__setattr__(self, name, tuple(value))
        shares = all(is_finite(value) and 0 < value < 1 for value in self.values)
        _require(shares and self.values, "values must be numbers between 0 and 1, both excluded")
        counts = all(type(count) is int and count >= 0 for count in self.positives)
        _require(counts and len(self.positives) == len(self.values), "positives must be one count per value")
        object.__setattr__(self, "input_size", _size(self.input_size))

    def check(self, classes: int) -> None:
        """Check that there is a threshold for each of so many classes.

        Raises:
            UserError: There is not.
        """
        _require(len(self.values) == classes, f"{len(self.values)} values for {classes} classes")


UNFITTED = 0.5
"""The threshold of a class that was not fitted."""


def check_share(name: str, value: object) -> None:
    """Check a share that an option gives.

    Raises:
        UserError: It is not a number between 0 and 1, both excluded.
    """
    if not is_finite(value) or not 0 < value < 1:  # type: ignore[operator]
        raise UserError(f"{name} {value}: must be between 0 and 1, both excluded")


def read(kind: Callable[..., Any], values: object) -> Any:
    """Build one of these objects from what JSON holds; what is one already stays.

    Raises:
        UserError: A key is missing or a value invalid.
    """
    if not isinstance(values, dict):
        _require(type(values) is kind, f"{kind.__name__} must be an object, not {values!r:.50}")
        return values
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: value for name, value in values.items() if name in names})
    except TypeError as error:
        raise UserError(f"thresholds: {reason_of(error)}") from error


def is_finite(value: object) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _size(size: object) -> tuple[int, ...]:
    pair = isinstance(size, (list, tuple)) and len(size) == 2 and all(type(edge) is int for edge in size)
    _require(pair, f"input_size must be height and width, not {size!r:.50}")
    assert isinstance(size, (list, tuple))
    return tuple(size)


def _floor(value: float) -> int:
    """Round down, but not for an error of arithmetic: (9 + 1) * (1 - 0.9) is 0.9999999999999998."""
    return math.floor(value + 1e-9)


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise UserError(f"thresholds: {problem}")
