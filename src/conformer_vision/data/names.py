"""What sets call their splits and their columns: one table for every form, whatever the case of a name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from conformer_vision.errors import UserError, some_names

from .splits import Split

SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
}
"""Names of a split; of several that are there the first is taken, and the others are left alone."""

IMAGE_COLUMNS = ("image", "img", "path", "file", "file_name", "filename", "filepath")
"""Names of a column of images; the first that is there is taken."""

LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")
"""Names of a column of labels, likewise."""

SPLIT_COLUMN = "split"
"""Name of the column that says which split an image belongs to."""


def find_splits(names: Iterable[str]) -> dict[Split, str]:
    """The names, as they are written, that stand for the training and the validation split."""
    written = {name.strip().lower(): name for name in names}
    found: dict[Split, str] = {}
    for part, known in SPLIT_NAMES.items():
        name = next((written[name] for name in known if name in written), None)
        if name is not None:
            found[part] = name
    return found


def is_split_name(name: str) -> bool:
    """Whether some set calls a split so."""
    return any(name.strip().lower() in known for known in SPLIT_NAMES.values())


def split_words() -> str:
    """The names of splits, for messages."""
    return ", ".join(name for known in SPLIT_NAMES.values() for name in known)


def group_files(paths: Sequence[str]) -> dict[Split, list[str]]:
    """Files of the training and the validation split by a word in their names or their folder's.

    A word is a run of letters. Nothing where one of the two splits is missing.

    Args:
        paths: with ``/`` between the parts; only the last two are looked at.
    """
    words = {path: re.findall("[a-z]+", "/".join(path.split("/")[-2:]).lower()) for path in paths}
    there = find_splits({word for found in words.values() for word in found})
    if len(there) < 2:
        return {}
    train = [path for path in paths if there["train"] in words[path]]
    val = [path for path in paths if there["val"] in words[path] and path not in train]
    return {"train": train, "val": val} if val else {}


def find_column(
    there: Collection[str], wanted: Sequence[str], *, origin: str, holds: str, columns: Iterable[str] = ()
) -> str:
    """The name, as it is written, of the column that holds images or labels.

    Args:
        there: columns that may hold them.
        wanted: known names, `IMAGE_COLUMNS` or `LABEL_COLUMNS`.
        origin: what an error calls the set.
        holds: what an error calls the content.
        columns: all columns, for the error; ``there`` where not given.

    Raises:
        UserError: no such column, or two that differ in case only.
    """
    for name in wanted:
        found = [column for column in there if column.strip().lower() == name]
        if len(found) > 1:
            raise UserError(f"{origin} has {len(found)} columns named {name}; rename all but one")
        if found:
            return found[0]
    raise UserError(
        f"{origin} has no column of {holds}; it needs one named {' or '.join(wanted)}, "
        f"it has {some_names(columns or there, most=20)}"
    )
