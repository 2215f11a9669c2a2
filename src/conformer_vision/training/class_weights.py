"""Weights of the classes in the loss, for sets in which some classes have many images and others few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from ..data.base import ImageSource, class_counts
from ..data.csv_file import read_csv
from ..data.stream import ImageStream
from ..errors import UserError, nearest, option, some_names

_COLUMNS = ("class", "weight")
Weights = NDArray[np.float64]
BALANCED, NONE = "balanced", "none"


def class_weights(given: str, images: ImageSource | ImageStream) -> Tensor | None:
    """Return a weight per class (K,), or None where none is asked for.

    They are scaled so that their mean over the training images is 1, and of a stream, whose counts are
    unknown, their mean over the classes. Of several labels per image they are the weights of the images that
    have the class, as they are.

    Args:
        given: `none`, `balanced` (inversely proportional to the number of images), or the path of a CSV file
            with the columns class and weight.
        images: the training images. A class without any has the weight 1 if balanced.

    Raises:
        UserError: `balanced` for a stream, or a file that does not give every class a positive weight.
    """
    if given == NONE:
        return None
    if images.multilabel:
        return torch.tensor(_of_positives(given, images), dtype=torch.float32)
    labels = None if isinstance(images, ImageStream) else np.array(images.labels)
    if given != BALANCED:
        weights = _read(Path(given).expanduser(), images.classes)
    elif labels is None:
        raise _uncounted()
    else:
        present = np.unique(labels)
        weights = np.ones(len(images.classes))
        weights[present] = compute_class_weight(BALANCED, classes=present, y=labels)
    mean = float(weights.mean() if labels is None else weights[labels].mean())
    return torch.tensor(weights / mean, dtype=torch.float32)


def _of_positives(given: str, images: ImageSource | ImageStream) -> Weights:
    """Return the weights of the images that have a class, where one that has it not weighs 1.

    Balanced, both kinds of images weigh as much in all. A class that all images have, or none, weighs 1.
    """
    if given != BALANCED:
        return _read(Path(given).expanduser(), images.classes)
    if isinstance(images, ImageStream):
        raise _uncounted()
    counts = class_counts(images)
    mixed = (counts > 0) & (counts < len(images))
    return np.divide(len(images) - counts, counts, out=np.ones(len(counts)), where=mixed)


def _uncounted() -> UserError:
    return UserError(
        f"class_weights {BALANCED}: a stream does not know how many images a class has; "
        "give a CSV file with a weight for every class"
    )


def _read(path: Path, classes: Sequence[str]) -> Weights:
    """Read the weights of a CSV file, in the order of the classes."""
    if not path.is_file():
        choices = f"{BALANCED}, {NONE}, or a CSV file with the columns {','.join(_COLUMNS)}"
        raise UserError(f"{option('class_weights')} {path}: no such file; give {choices}")
    header, rows = read_csv(path)
    columns = [name.lower() for name in header]
    if any(name not in columns for name in _COLUMNS):
        raise UserError(f"{path}: its first line must be {','.join(_COLUMNS)}, not {','.join(header)}")
    place = [columns.index(name) for name in _COLUMNS]
    found: dict[str, float] = {}
    for line, cells in rows:
        name, text = (cells[column].strip() for column in place)
        if name not in classes:
            raise UserError(f"{path} line {line}: the data has no class {name!r}{nearest(name, classes)}")
        if name in found:
            raise UserError(f"{path} line {line}: a second weight of the class {name!r}; keep one")
        found[name] = _positive(text)
        if math.isnan(found[name]):
            raise UserError(f"{path} line {line}: the weight {text!r} must be a finite number above 0")
    if missing := [name for name in classes if name not in found]:
        raise UserError(f"{path} has no weight of the class {some_names(missing)}; add a line for each")
    return np.array([found[name] for name in classes])


def _positive(text: str) -> float:
    """Return a finite number above 0, or not-a-number for any other text."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if 0 < value < math.inf else math.nan
