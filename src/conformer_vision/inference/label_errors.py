"""Label errors by confident learning, from the answers of networks that were not trained on the images.

The rule is that of Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset
Labels", Journal of Artificial Intelligence Research 70 (2021), section 3: the confident joint, calibrated to
the counts of the labels, and pruning by noise rate (PBNR).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conformer_vision.errors import UserError, reason_of
from conformer_vision.inference.heads import Array
from conformer_vision.runs import OUT_OF_FOLD, read_results
from conformer_vision.runtime.base import FUSED


@dataclass(frozen=True)
class LabelError:
    """An image whose label is probably wrong."""

    image: str
    """Its name."""
    label: str
    suggested: str
    """The most probable class."""
    score: float
    """Probability of the label, in [0, 1]: the lower, the surer the error."""


@dataclass(frozen=True)
class LabelErrors:
    """What the answers of the folds say about the labels."""

    errors: list[LabelError]
    """The surest first."""
    images: int
    """Number of images that were looked at."""
    estimated: float
    """Estimated share of wrong labels; there are about as many errors in the list."""


def find_label_errors(run: str | Path) -> LabelErrors:
    """Find label errors among the images that the folds of a run were trained on.

    Args:
        run: folder of a run of all folds.

    Raises:
        UserError: the run has no out-of-fold answers, or they cannot be read.
    """
    names, labels, probabilities, classes = read_out_of_fold(Path(run))
    joint = estimated_joint(labels, probabilities)
    rows = prune_by_noise_rate(labels, probabilities, joint)
    scores = probabilities[rows, labels[rows]]
    suggested = probabilities[rows].argmax(axis=1)
    order = np.argsort(scores, kind="stable")
    errors = [
        LabelError(
            names[rows[place]],
            classes[labels[rows[place]]],
            classes[suggested[place]],
            float(scores[place]),
        )
        for place in order
    ]
    return LabelErrors(errors, len(names), float(1 - np.trace(joint)))


def read_out_of_fold(folder: Path) -> tuple[list[str], Array, Array, list[str]]:
    """Read the answers of the folds of a run.

    Returns:
        Names (N,), labels (N,) as numbers of classes, probabilities (N, K) of the prediction, classes (K,).

    Raises:
        UserError: there are none, or the file was changed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = folder / OUT_OF_FOLD
    if not path.is_file():
        raise UserError(
            f"{folder} has no {OUT_OF_FOLD}; label errors are found by networks that were not trained on the "
            "images, so train with --folds 5 --fold all and give that run folder"
        )
    results = read_results(folder) or {}
    if "map" in results.get("out_of_fold", {}).get(FUSED, {}):
        raise UserError(
            f"{folder} was trained on several labels per image; label errors are found among single labels"
        )
    prefix = f"{FUSED}:"
    try:
        table = pq.read_table(path)
        table = table.filter(pc.is_null(table.column("error")))  # images that could be read
        columns = [name for name in table.column_names if name.startswith(prefix)]
        classes = [name.removeprefix(prefix) for name in columns]
        number = {name: place for place, name in enumerate(classes)}
        labels = np.array([number[name] for name in table.column("truth").to_pylist()], np.int64)
        probabilities = np.stack([table.column(name).to_numpy() for name in columns], axis=1).astype(float)
        return table.column("image").to_pylist(), labels, probabilities, classes
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({reason_of(error)}); remove it and resume the run, which writes it anew"
        ) from error


def confident_joint(labels: Array, probabilities: Array) -> Array:
    """Count the images (K, K) by label and by the class that they confidently are of.

    An image is confidently of a class if its probability is at least the mean probability of that class among
    the images labelled with it; of several such classes, of the most probable one.

    Args:
        labels: (N,), from 0 to K - 1.
        probabilities: (N, K), of networks that were not trained on the images.
    """
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = np.bincount(labels, weights=probabilities[np.arange(len(labels)), labels], minlength=classes)
    thresholds = np.divide(own, counts, out=np.full(classes, np.inf), where=counts > 0)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    found = confident.argmax(axis=1)
    sure = confident.max(axis=1) >= 0
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[sure], found[sure]), 1)
    return joint


def estimated_joint(labels: Array, probabilities: Array) -> Array:
    """Estimate the joint distribution (K, K) of the given and the true labels; its sum is 1.

    The rows of the confident joint are scaled to the shares of the labels. A label of which no image is
    confidently of any class is taken for right.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1]).astype(float)
    joint = confident_joint(labels, probabilities).astype(float)
    rows = joint.sum(axis=1, keepdims=True)
    shares = np.divide(joint, rows, out=np.eye(len(counts)), where=rows > 0)
    return np.asarray(shares * counts[:, None] / len(labels))


def prune_by_noise_rate(labels: Array, probabilities: Array, joint: Array) -> Array:
    """Choose the images whose label is probably wrong.

    Of each pair of a label and another class, as many as the joint says, those with the largest margin
    between the probability of the class and that of the label. Images whose label is the most probable class
    stay.

    Returns:
        Their rows, ascending.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        margins = probabilities[mine] - probabilities[mine, label][:, None]
        for other, share in enumerate(joint[label]):
            number = round(float(share) * len(labels))
            if other != label and number:
                chosen[mine[np.argsort(-margins[:, other], kind="stable")[:number]]] = True
    chosen &= probabilities.argmax(axis=1) != labels
    return np.flatnonzero(chosen)
