"""How well the frozen features of a network tell classes apart: nearest neighbours and a linear probe.

Fine-tuning has to beat them. The two classifiers are scikit-learn's, on the features that the heads see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from conformer_vision.data import ImageSource, Label, Splitting, open_images, require_source
from conformer_vision.data.base import SubsetSource, is_counted
from conformer_vision.data.loader import evaluation_loader
from conformer_vision.errors import UserError
from conformer_vision.models import Conformer
from conformer_vision.spec import ModelSpec
from conformer_vision.tensors import evaluation_transform
from conformer_vision.weights import load_model

MOST_TRAIN, MOST_VAL = 2000, 1000
"""Images that are looked at most: a fraction of an epoch's work on a large set."""
NEIGHBOURS = 10
STRENGTH = 0.01
"""Of the linear probe: scikit-learn's C, for standardised features."""


@dataclass(frozen=True)
class FeatureScore:
    """Top-1 of two classifiers on some features."""

    features: str
    """``conv`` (the pooled map), ``trans`` (the class token) or ``both``; ``all`` for other models."""
    knn: float
    linear: float


@dataclass(frozen=True)
class Probe:
    """How well frozen features tell classes apart."""

    scores: tuple[FeatureScore, ...]
    train: int
    """Training images that the classifiers were fitted to."""
    val: int
    """Validation images that they were evaluated on."""
    complete: bool
    """Whether these are all images."""


def probe(
    model: str | Path,
    data: str | Path,
    *,
    splitting: Splitting = Splitting(),  # noqa: B008  # immutable
    data_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    workers: int = 0,
    most: tuple[int, int] = (MOST_TRAIN, MOST_VAL),
) -> Probe:
    """Fit nearest neighbours and a linear probe to the features of a model, for classes of any names.

    Of larger sets a part is taken, as many images of every class as possible.

    Args:
        model: As in `conformer_vision.load`.
        data: Labelled images with training and validation images.
        splitting: How to cut data without validation images of its own.
        data_dir: Where named sets are kept.
        device: A torch device.
        batch_size: Images per forward pass.
        workers: Processes that read images.
        most: Largest numbers of training and of validation images.

    Raises:
        UserError: As `load` and `open_images`, a stream, or no image that can be read.
    """
    network, spec = load_model(model)
    train = require_source(open_images(data, "train", splitting, data_dir=data_dir), name=data)
    if train.multilabel:
        raise UserError(f"{data} has several labels per image; a probe is for data with one label per image")
    val = open_images(data, "val", splitting, classes=train.classes, data_dir=data_dir)
    return probe_features(
        network,
        spec,
        train,
        require_source(val, name=data),
        device=device,
        batch_size=batch_size,
        workers=workers,
        most=most,
    )


def probe_features(
    model: nn.Module,
    spec: ModelSpec,
    train: ImageSource,
    val: ImageSource,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    workers: int = 0,
    most: tuple[int, int] = (MOST_TRAIN, MOST_VAL),
) -> Probe:
    """Do the same as `probe` for a network, its specification and opened images.

    Raises:
        UserError: Fewer than two classes, or no validation image, can be read.
    """
    model = model.to(device).eval()
    parts = []
    for source, limit in ((train, most[0]), (val, most[1])):
        part = SubsetSource(source, evenly(source.labels, most=limit))
        parts.append(_features(model, spec, part, batch_size=batch_size, workers=workers))
    (x, y), (x_val, y_val) = parts
    if len(np.unique(y)) < 2 or not len(y_val):
        raise UserError("the features of a model cannot be probed: too few images can be read")
    places = {"all": slice(None)}
    if isinstance(model, Conformer):
        places = {"conv": slice(model.map_chs), "trans": slice(model.map_chs, None), "both": slice(None)}
    scores = []
    for name, place in places.items():
        linear = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=1000))
        nearest = KNeighborsClassifier(min(NEIGHBOURS, len(y)), metric="cosine")
        knn, line = (
            float(fitted.fit(x[:, place], y).score(x_val[:, place], y_val)) for fitted in (nearest, linear)
        )
        scores.append(FeatureScore(name, knn, line))
    complete = len(train) <= most[0] and len(val) <= most[1]
    return Probe(tuple(scores), len(y), len(y_val), complete)


def evenly(labels: Sequence[Label], *, most: int, seed: int = 0) -> list[int]:
    """Return the rows of at most so many images, as equally many of every class as there are, in order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[Label, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in order.tolist():
        label = labels[row]
        ranked.append((seen.get(label, 0), len(ranked), row))
        seen[label] = seen.get(label, 0) + 1
    return sorted(row for _, _, row in sorted(ranked)[:most])


def _features(
    model: Any, spec: ModelSpec, source: ImageSource, *, batch_size: int, workers: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the features (N, C) that the heads see, and the labels (N,), of the images that can be read."""
    device = next(model.parameters()).device
    features: list[Tensor] = []
    labels: list[Tensor] = []
    transform = evaluation_transform(spec)
    with torch.no_grad():
        for batch in evaluation_loader(source, transform, batch_size=batch_size, workers=workers):
            counted = is_counted(batch.labels)
            if bool(counted.any()):
                seen = model.forward_features(batch.images[counted].to(device))
                features.append(model.forward_head(seen, pre_logits=True).float().cpu())
                labels.append(batch.labels[counted])
    if not features:
        return np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()
