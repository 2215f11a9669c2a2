"""Groups: images that must not be parted by a split, such as those of one patient, video or site."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from conformer_vision.errors import UserError, nearest, one_line, option, some_names

from .base import ImageSource
from .names import same_column

_SPECIAL = re.compile(r"[\\\[\](){}*+?^$|]")
"""Characters that make a text a regular expression rather than the name of a column."""
_SECONDS, _NAMES_PER_SECOND = 10.0, 20_000
"""Time that an expression gets, and more of it for many paths."""
_MATCHER = """
import json, re, sys
pattern, names = json.load(sys.stdin)
search = re.compile(pattern).search
found = [search(name) for name in names]
json.dump([None if each is None else each[bool(each.re.groups)] for each in found], sys.stdout)
"""


@dataclass(frozen=True)
class Grouping:
    """What a form of data can be grouped by.

    Attributes:
        origin: what an error calls the set.
        where: what an error calls a row.
        columns: names of the columns that may hold groups; empty where the form has none.
        read: reads a column, a value per row; None or spaces for a row without one. It returns None for a
            column that holds something else than single values.
        path: the path of an image in the set, with ``/`` between the parts; None where images have none.
    """

    origin: str
    where: Callable[[int], str]
    columns: Collection[str] = ()
    read: Callable[[str], Sequence[str | None] | None] = lambda name: None
    path: Callable[[int], str] | None = None

    def groups(self, group: str | None, rows: Iterable[int], *, count: int) -> list[str] | None:
        """Return the group of every row; empty for rows that are not asked for.

        Args:
            group: a column, or a regular expression that is searched in the paths; its first group is taken,
                or the whole match where it has none. None for no groups.
            rows: the rows that are used.
            count: number of all rows.

        Raises:
            UserError: no such column, an expression that is invalid, takes too long or matches not all
                images, or a row without a group.
        """
        if group is None:
            return None
        rows = list(rows)
        column = find_group_column(group, self.columns, origin=self.origin, has_paths=self.path is not None)
        if column is not None:
            values = self.read(column)
            if values is None:
                raise UserError(
                    f"{self.origin}: column {column!r} does not hold single values, so it gives no groups"
                )
            found = [values[row] for row in rows]
            lacks = f"is empty in column {column!r}; fill it in (a value of its own where it is unknown)"
        else:
            assert self.path is not None
            paths = [plain_name(self.path(row)) for row in rows]
            found = match(group, paths, origin=self.origin)
            if found and not any(found):
                given, shown = option("group", group), one_line(paths[0])
                raise UserError(f"{given} finds a group in no path of {self.origin}, such as {shown}")
            lacks = f"is not found by {group!r}; every image needs one"
        groups = [""] * count
        missing = [row for row, value in zip(rows, found, strict=True) if not (value or "").strip()]
        if missing:
            shown = f" ({one_line(self.path(missing[0]))})" if self.path is not None else ""
            raise UserError(
                f"{self.where(missing[0])}{shown}: its group {lacks}; "
                f"{len(missing):,} of {len(rows):,} images have none"
            )
        for row, value in zip(rows, found, strict=True):
            groups[row] = plain_name(str(value)).strip()
        return groups


def find_group_column(group: str, columns: Collection[str], *, origin: str, has_paths: bool) -> str | None:
    """Return the column that ``--group`` names; None if it is a regular expression.

    Raises:
        UserError: it is neither.
    """
    if group in columns:
        return group
    if len(alike := [name for name in columns if same_column(name, group)]) == 1:
        return alike[0]
    given = option("group", group)
    if columns and not _SPECIAL.search(group):
        hint = nearest(group, columns) or f"; it has {some_names(columns, most=20)}"
        raise UserError(f"{given}: {origin} has no such column{hint}")
    check_pattern(group)
    if not has_paths:
        has = f"; it has the columns {some_names(columns, most=20)}" if columns else ""
        raise UserError(f"{given}: the images of {origin} have no paths to search in{has}")
    return None


def check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        UserError: it cannot be compiled.
    """
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"{option('group', pattern)} is no regular expression ({error})") from error


def match(pattern: str, paths: Sequence[str], *, origin: str) -> list[str | None]:
    """Return what a valid expression finds in each path.

    Python's expressions can take longer than the universe has, and nothing stops them, in a thread least of
    all. So they run in a process of their own.

    Raises:
        UserError: it takes too long.
    """
    text = json.dumps([unicodedata.normalize("NFC", pattern), paths])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", "-c", _MATCHER],
            input=text,
            capture_output=True,
            text=True,
            timeout=_SECONDS + len(paths) / _NAMES_PER_SECOND,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{option('group', pattern)} takes too long on the paths of {origin}, such as "
            f"{one_line(paths[0])}; write it without repeats inside repeats"
        ) from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{option('group', pattern)} cannot be searched for ({error})") from error
    found: list[str | None] = json.loads(done.stdout)
    return found


def plain_name(name: str) -> str:
    """Return a name as groups are compared: systems write the same letters as different characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def taken(groups: Sequence[str] | None, rows: Iterable[int]) -> tuple[str, ...] | None:
    """Return the groups of some rows."""
    return None if groups is None else tuple(groups[row] for row in rows)


def shared_groups(train: ImageSource, val: ImageSource) -> list[str]:
    """Return the groups that have images on both sides, sorted; none without groups."""
    return sorted({*(train.groups or ())} & {*(val.groups or ())})


def leak_line(shared: Sequence[str]) -> str:
    """Say that groups have images on both sides."""
    count = "1 group is" if len(shared) == 1 else f"{len(shared):,} groups are"
    return f"{count} in train and val ({some_names(shared, most=3)}): validation figures are too high"
