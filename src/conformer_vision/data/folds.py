"""Folds of groups, which a run records: images must not change their fold when the set has grown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformer_vision.errors import UserError
from conformer_vision.runs import FOLDS_FILE

from .csv_file import read_csv, write_csv
from .grouped import Groups
from .opening import describe, open_images, require_source
from .splits import Splitting

_COLUMNS = ["group", "fold"]


def deal_folds(data: Any, splitting: Splitting, *, data_dir: str | Path | None) -> dict[str, int] | None:
    """Deal the groups of a set to folds, as `Splitting.deal` does; None without groups or without folds.

    Args:
        data: as in `open_images`.
        splitting: how the set is cut.
        data_dir: as in `open_images`.

    Raises:
        UserError: as `open_images` and `Splitting.deal`.
    """
    if splitting.group is None or splitting.folds is None:
        return None
    source = require_source(open_images(data, "all", splitting, data_dir=data_dir), name=describe(data))
    assert source.groups is not None
    groups = Groups.of(source.labels, source.groups)
    return splitting.deal(groups, describe(data), source.classes)


def write_folds(folder: Path, folds: Mapping[str, int]) -> None:
    """Write the fold of each group into a run folder.

    Raises:
        UserError: it cannot be written.
    """
    write_csv(folder / FOLDS_FILE, _COLUMNS, folds.items())


def read_folds(folder: str | Path) -> dict[str, int] | None:
    """Read the fold of each group from a run folder; None where it records none.

    Raises:
        UserError: the file cannot be read or was changed.
    """
    path = Path(folder, FOLDS_FILE)
    if not path.is_file():
        return None
    header, rows = read_csv(path, errors="surrogateescape")
    cells = list(rows)
    if header != _COLUMNS or not all(fold.isdecimal() for _, (_, fold) in cells):
        raise UserError(f"{path} does not name a fold for each group; restore it, or train anew")
    return {group: int(fold) for _, (group, fold) in cells}
