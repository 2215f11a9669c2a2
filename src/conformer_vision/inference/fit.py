"""Fit to validation images what a model's answers are held against, in one place for all of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from conformer_vision.class_means import ClassMeans
from conformer_vision.inference.class_thresholds import fit_class_thresholds, unfitted_note
from conformer_vision.inference.conformal import fit_sets
from conformer_vision.inference.heads import SeveralLabels
from conformer_vision.inference.unsure import MIN_IMAGES, fit_rules
from conformer_vision.runtime.base import FUSED, Array, Outputs
from conformer_vision.runtime.decisions import sigmoid, softmax
from conformer_vision.runtime.unsure import reasons, sum_up
from conformer_vision.spec import ModelSpec
from conformer_vision.thresholds import ClassThresholds, Thresholds

MOST_IMAGES = 10_000
"""Images that thresholds are fitted to; more would not change them."""


class FittedThresholds(NamedTuple):
    """What `fit_thresholds` found."""

    thresholds: Thresholds | None
    class_means: ClassMeans | None
    note: str | None
    """Why there are no thresholds."""
    scores: Array | None = None
    """(N,) float64, of the validation images, each compared with the others: the lower, the less sure."""
    unsure: tuple[str | None, ...] = ()
    """Why the answers to the N validation images are unsure; None for those that are not."""


class FittedClasses(NamedTuple):
    """What `fit_multilabel` found."""

    thresholds: ClassThresholds | None
    class_means: None
    note: str | None
    """Why there are no thresholds, or none of some classes."""


def fit_thresholds(
    outputs: Outputs, labels: Array, *, spec: ModelSpec, temperature: float
) -> FittedThresholds:
    """Fit reject rules, conformal sets and class means.

    Args:
        outputs: Of the N validation images.
        labels: (N,) int64, their classes.
        spec: Of the model; its input size is that of the images.
        temperature: Of the prediction, as it will be.
    """
    rules, class_means, note, signals = fit_rules(outputs, labels, classes=spec.num_classes)
    if not rules:
        return FittedThresholds(None, None, note)
    probabilities = softmax(outputs.logits[FUSED].astype(np.float64) / temperature)
    height, width = spec.input_size[1:]
    thresholds = Thresholds(rules, fit_sets(probabilities, labels), (height, width))
    least = rules[0].threshold(thresholds.coverage)
    return FittedThresholds(
        thresholds,
        class_means,
        None,
        sum_up(rules[0], signals),
        tuple(reasons(rules[0], signals, outputs.logits, threshold=least)),
    )


def fit_multilabel(outputs: Outputs, labels: Array, *, spec: ModelSpec, temperature: float) -> FittedClasses:
    """Fit the thresholds of the classes of a model of several labels per image.

    Args:
        outputs: Of the N validation images.
        labels: (N, K), 1 for the classes of an image; or (N,), for images of one label each.
        spec: Of the model; its input size is that of the images.
        temperature: Of the prediction, as it will be.
    """
    truth = SeveralLabels(spec.class_thresholds).truth(torch.from_numpy(labels), spec.num_classes).numpy()
    if len(truth) < MIN_IMAGES:
        note = f"{len(truth)} validation images are too few to fit thresholds ({MIN_IMAGES} are needed)"
        return FittedClasses(None, None, note)
    probabilities = sigmoid(outputs.logits[FUSED] / temperature)
    height, width = spec.input_size[1:]
    found = fit_class_thresholds(probabilities, truth, input_size=(height, width))
    return FittedClasses(found, None, unfitted_note(found, spec.labels))


class OutputSample:
    """The outputs for images of known classes, batch by batch: all, or as many, drawn evenly, as are needed.

    Args:
        images: Number of images to come; None for a stream of unknown length, of which the first are kept.
    """

    def __init__(self, images: int | None) -> None:
        self._every = max(math.ceil((images or 0) / MOST_IMAGES), 1)
        self._seen = 0
        self._parts: list[tuple[Outputs, Array]] = []
        self.places: list[int] = []
        """Of the images that are kept, among all that were added."""

    def add(self, outputs: Outputs, labels: Array) -> None:
        """Add a batch: its outputs and classes (B,)."""
        places = np.arange(self._seen, self._seen + len(labels))
        self._seen += len(labels)
        kept = (places % self._every == 0) & (places < MOST_IMAGES * self._every)
        logits = {head: values[kept] for head, values in outputs.logits.items()}
        features = None if outputs.features is None else outputs.features[kept]
        self._parts.append((Outputs(logits, features), labels[kept]))
        self.places += places[kept].tolist()

    def join(self) -> tuple[Outputs, Array]:
        """Return the outputs and the classes of the images that were kept; there must be one."""
        outputs, labels = zip(*self._parts, strict=True)
        logits = {head: np.concatenate([each.logits[head] for each in outputs]) for head in outputs[0].logits}
        features = [each.features for each in outputs if each.features is not None]
        return Outputs(logits, np.concatenate(features) if features else None), np.concatenate(labels)
