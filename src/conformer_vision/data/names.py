"""What sets call their splits and their columns: one table for every form, whatever the case of a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Literal, NamedTuple

from conformer_vision.errors import UserError, option, some_names

from .splits import Split

Kind = Literal["train", "val", "test"]

_KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("train", "training", "trainval", "trn"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""Words for a split, also in the plural. A test split is for validation where no other is."""

_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "data dataset dir example file folder image img part partition photo picture sample set split subset",
    )
)
"""Words beside a split's that say nothing more, also in the plural and in one word with it (``trainset``)."""

IMAGE_COLUMNS = (
    *("image", "img", "path", "file", "filename", "filepath", "imagepath", "imgpath", "imagefile"),
    *("imagename", "imageindex"),
)
"""Names of a column of images, also in the plural; the first that is there is taken."""

LABEL_COLUMNS = ("label", "finelabel", "class", "classname", "cls")
"""Names of a column of labels, likewise."""

SPLIT_COLUMNS = ("split", "subset", "partition", "dataset", "set", "usage", "phase")
"""Names of the column that says which split an image belongs to, likewise."""


class SplitName(NamedTuple):
    """A name that means a split."""

    kind: Kind
    affix: tuple[str, ...]
    """Other words in it, which all splits of a set share: ``seg`` of ``seg_train``."""


def parse_split(name: str) -> SplitName | None:
    """Read the split that a name means, as in ``Train``, ``TESTS``, ``val2017`` or ``seg_train``.

    Returns None for a name without a split's word, or with words of several splits.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = " ".join(re.findall(r"[^\W\d_]+", spaced)).casefold().replace("train val", "trainval").split()
    kinds = [_kind(word) for word in words]
    found = {kind for kind in kinds if kind is not None}
    if len(found) != 1:
        return None
    said = (_singular(word) for word, kind in zip(words, kinds, strict=True) if kind is None)
    return SplitName(found.pop(), tuple(word for word in said if word not in _FILLERS))


def _kind(word: str) -> Kind | None:
    for filler in ("", *_FILLERS):
        kind = _KINDS.get(_singular(_singular(word).removesuffix(filler)))
        if kind is not None:
            return kind
    return None


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word


def find_splits(names: Iterable[str], *, origin: str) -> dict[Split, str]:
    """Find the names, as they are written, of the training and the validation split.

    Names that mean no split, and a test split beside a validation split, are left alone.

    Args:
        names: all names.
        origin: what an error calls the set.

    Raises:
        UserError: it is unclear which names are the splits.
    """
    names = list(names)
    parsed = {name: split for name in names if (split := parse_split(name)) is not None}
    families: dict[tuple[str, ...], dict[Kind, list[str]]] = {}
    for name, (kind, affix) in parsed.items():
        families.setdefault(affix, {}).setdefault(kind, []).append(name)
    complete = [family for family in families.values() if "train" in family and len(family) > 1]
    kinds = {split.kind for split in parsed.values()}
    if complete:
        family, clear = complete[0], len(families) == 1
    elif "train" in kinds and len(kinds) > 1:  # but with different words around them
        family, clear = {}, len(parsed) < len(names)
    else:
        family, clear = families.get((), next(iter(families.values())) if len(families) == 1 else {}), True
    found: dict[Split, list[str]] = {
        "train": family.get("train", []),
        "val": family.get("val") or family.get("test", []),
    }
    if not clear or any(len(same) > 1 for same in found.values()):
        raise UserError(
            f"{origin}: it is unclear which of {some_names(parsed)} are the training and the validation "
            "split; call them train and val, and give the others names without these words"
        )
    return {part: same[0] for part, same in found.items() if same}


def split_words() -> str:
    """Return the words for splits, for messages."""
    return ", ".join(_KINDS)


def group_files(paths: Sequence[str], *, origin: str) -> dict[Split, list[str]]:
    """Sort files into the training and the validation split by their names, or else their folders'.

    Files that mean no split, and of a test split beside a validation split, are left alone.

    Args:
        paths: with ``/`` between the parts.
        origin: what an error calls the set.

    Returns:
        Nothing where no name, or every name, means the same split.

    Raises:
        UserError: the names of files and folders contradict each other, or only some mean a split.
    """
    files = {path: PurePath(path).name for path in paths}
    folders = {path: PurePath(path).parent.name for path in paths}
    by_name, by_folder = _group(files), _group(folders)
    if by_name and by_folder and by_name != by_folder:
        raise UserError(
            f"{origin}: the names of files and of their folders mean different splits, "
            f"as in {paths[0]}; name the splits in one place"
        )
    groups = by_name or by_folder
    if not groups and not (_agree(files.values()) and _agree(folders.values())):
        raise UserError(
            f"{origin}: it is unclear which files are for training and which for validation; put train or "
            "val into the name of each, or give a pattern that leaves the others out"
        )
    return groups


def _agree(words: Iterable[str]) -> bool:
    """Tell whether all words, or none, mean the same split."""
    return len({split and split.kind for split in map(parse_split, words)}) < 2


def _group(words: Mapping[str, str]) -> dict[Split, list[str]]:
    kinds = {path: split.kind for path, word in words.items() if (split := parse_split(word)) is not None}
    held_out = "val" if "val" in kinds.values() else "test"
    groups: dict[Split, list[str]] = {
        "train": [path for path, kind in kinds.items() if kind == "train"],
        "val": [path for path, kind in kinds.items() if kind == held_out],
    }
    return groups if all(groups.values()) else {}


def find_column(there: Collection[str], wanted: Sequence[str], *, origin: str, holds: str) -> str:
    """Find the column that holds images or labels, and return its name as it is written.

    Args:
        there: columns that may hold them.
        wanted: known names, `IMAGE_COLUMNS` or `LABEL_COLUMNS`.
        origin: what an error calls the set.
        holds: what an error calls the content.

    Raises:
        UserError: no such column, or two of one name.
    """
    for name in wanted:
        if found := _named(there, name):
            if len(found) > 1:
                raise UserError(f"{origin} has {len(found)} columns named {name}; rename all but one")
            return found[0]
    another = f"; {option('label_column')} names another" if holds == "labels" else ""
    raise UserError(
        f"{origin} has no column of {holds}; it needs one named {' or '.join(wanted)}, "
        f"it has {some_names(there, most=20)}{another}"
    )


def is_column(name: str, wanted: Sequence[str]) -> bool:
    """Tell whether a column has one of the names, whatever its case, spaces, underscores and plural."""
    return _plain(name) in wanted


def same_column(name: str, other: str) -> bool:
    """Tell whether two names of columns differ in case, spaces, underscores and plural alone."""
    return _plain(name) == _plain(other)


def may_hold_splits(name: str) -> bool:
    """Tell whether `find_words` may want a column."""
    return is_column(name, SPLIT_COLUMNS) or _is_flag(name)


def _is_flag(name: str) -> bool:
    return _plain(name).startswith("is") and _kind(_plain(name)[2:]) is not None


def find_words(
    columns: Collection[str], words: Callable[[str], Sequence[str] | None], *, origin: str
) -> Sequence[str] | None:
    """Read which split each row belongs to from the column that says so; None where there is none.

    A column ``split`` is taken at its word. One of the other `SPLIT_COLUMNS` may hold anything; it is
    meant where all its words are splits.

    Args:
        columns: names of all columns.
        words: reads a column; None where it does not hold strings.
        origin: what an error calls the set.

    Raises:
        UserError: several columns say it, or one like ``is_valid``.
    """
    known, *others = SPLIT_COLUMNS
    found = {name: read for name in _named(columns, known) if (read := words(name)) is not None}
    if not found:
        for name in (name for other in others for name in _named(columns, other)):
            read = words(name)
            if read and all(parse_split(word) for word in set(read)):
                found[name] = read
    if len(found) > 1:
        raise UserError(f"{origin}: the columns {some_names(found)} all name splits; rename all but one")
    flags = [name for name in columns if _is_flag(name)]
    if flags and not found:
        raise UserError(
            f"{origin}: the column {flags[0]!r} looks like a split; write a column split with train and val"
        )
    return next(iter(found.values()), None)


def _named(columns: Iterable[str], wanted: str) -> list[str]:
    found = [name for name in columns if _plain(name) == wanted]
    return [name for name in found if name.strip().casefold() == wanted] or found


def _plain(name: str) -> str:
    return _singular(re.sub(r"[\W_]+", "", name.casefold()))
