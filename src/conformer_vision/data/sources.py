"""One way to open labelled pictures, whatever form they come in."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path

from .base import ImageSource, Split

DIGITS = "digits"


def open_source(
    spec: str | Path,
    *,
    split: Split,
    val_fraction: float = 0.1,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """Opens one part of a set of labelled pictures.

    Args:
        spec: a folder of class folders, or with ``train`` and ``val`` of class folders
            (`folder.open_folder`); a parquet file, a folder of parquet files or a glob in the
            Hugging Face image layout (`parquet.open_parquet`); or the name ``digits``,
            scikit-learn's 1,797 handwritten digits. A folder of that name is given as
            ``./digits``.
        split: ``train`` or ``val``, or ``all`` for both together.
        val_fraction: share of every class held out where the set has no split of its own; at
            least one picture of a class that has two.
        seed: seed of that split.
        classes: class names of a trained model; labels are matched to them by name.

    Raises:
        UserError: nothing there, an unknown layout, an empty class, a single class, a label or a
            class that cannot be; the line names it.
    """
    if split not in ("train", "val", "all"):
        raise UserError(f"split {split!r}: must be train, val or all")
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction {val_fraction}: must be between 0 and 1, both excluded")
    if str(spec) == DIGITS and not isinstance(spec, Path):
        from .digits import DigitsSource

        return DigitsSource(split=split, val_fraction=val_fraction, seed=seed, classes=classes)
    path = Path(spec).expanduser()
    if not os.path.lexists(path) and not glob.has_magic(str(path)):
        raise UserError(f"{spec} does not exist{_suggestion(path)}")

    from .folder import open_folder
    from .parquet import is_parquet, open_parquet

    if is_parquet(path):
        return open_parquet(path, split=split, val_fraction=val_fraction, seed=seed, classes=classes)
    return open_folder(path, split=split, val_fraction=val_fraction, seed=seed, classes=classes)


def write_examples(source: ImageSource, folder: str | Path, *, count: int, seed: int = 0) -> list[Path]:
    """Writes pictures drawn at random as PNG files ``CLASS_NUMBER.png``, in the order of their numbers.

    Args:
        source: where to draw from.
        folder: made where it is missing.
        count: pictures to write.
        seed: seed of the draw.

    Raises:
        UserError: more pictures than the source has, or a folder that cannot be written.
    """
    import numpy as np

    if not 0 < count <= len(source):
        raise UserError(f"count {count}: must be from 1 to the {len(source)} pictures of the source")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    paths = []
    for index in sorted(np.random.default_rng(seed).permutation(len(source))[:count].tolist()):
        image, label = source[index]
        name = re.sub(r"[^\w.-]+", "_", source.classes[label])
        paths.append(folder / f"{name}_{index:05d}.png")
        with atomic_path(paths[-1]) as temporary:
            image.save(temporary)
    return paths


def _suggestion(path: Path) -> str:
    try:
        beside = [name for name in os.listdir(path.parent) if not name.startswith(".")]
    except OSError:
        beside = []
    near = difflib.get_close_matches(path.name, [*beside, DIGITS], n=1)
    if not near:
        return "; give a folder of class folders, parquet files, or the name digits"
    return f"; did you mean {path.parent / near[0] if near[0] in beside else near[0]}?"
