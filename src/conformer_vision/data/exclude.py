"""Lists of images to leave out: plain text, one image a line.

A line is the image's name as the source and its messages give it (``ImageSource.name``), then,
if wanted, white space, ``#`` and the reason. Empty lines and lines that begin with ``#`` are
comments. A name that such a line cannot hold (with a line break, white space at an end, white space
before ``#``, bytes that are not UTF-8, or ``"`` or ``#`` at its start) is written as a JSON string.

Names are compared as absolute paths without ``.``, ``..`` and doubled slashes, links not resolved,
so that it does not matter whether the data was given by a relative or an absolute path. A relative
name counts from the working folder; `write_exclusions` writes absolute ones. The rows of sets that
have a name (``digits row 5``, ``torch/mnist train row 5``) are no paths and are compared as they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path

from .base import ImageSource, SubsetSource, some_names

_HEADER = "# Images to leave out: one name a line, and after # the reason."
_NAMED_ROW = re.compile(r"(digits|hfds/.*|torch/.*) row [0-9]+", re.DOTALL)
_COMMENT = re.compile(r"\s#")


class ExcludedSource(SubsetSource):
    """A source without some of its images.

    Attributes:
        unmatched: the names to leave out, in normal form, that no image of the source has. A list
            for a whole set names images of both its splits, so a name is wrong where it is
            unmatched in each of them.
    """

    def __init__(self, source: ImageSource, rows: list[int], *, unmatched: frozenset[str]) -> None:
        super().__init__(source, rows)
        self.unmatched = unmatched


def exclude(source: ImageSource, names: Iterable[str], *, every_class: bool = True) -> ExcludedSource:
    """The source without the images of these names; its classes stay as they are.

    Args:
        source: the images.
        names: names as ``source.name`` gives them; see above for how they are compared.
        every_class: refuse to leave out the last image of a class. False where a class may do
            without, as in validation.

    Raises:
        UserError: no image would be left, of the source or of a class.
    """
    wanted = {normal_name(name) for name in names}
    found = set()
    rows = []
    for row in range(len(source) if wanted else 0):
        name = normal_name(source.name(row))
        if name in wanted:
            found.add(name)
        else:
            rows.append(row)
    if not wanted:
        rows = list(range(len(source)))
    if found and not rows:
        raise UserError(f"all {len(source)} images are to be left out; shorten the list of exclusions")
    if found and every_class:
        labels = np.asarray(source.labels)
        lost = sorted(set(labels.tolist()) - set(labels[rows].tolist()))
        if lost:
            raise UserError(
                f"every image of the class {some_names(source.classes[label] for label in lost)} "
                "is to be left out; keep some, or take the class out of the data"
            )
    return ExcludedSource(source, rows, unmatched=frozenset(wanted - found))


def normal_name(name: str) -> str:
    """The form in which names are compared: an absolute path, or the row of a set with a name."""
    return name if _NAMED_ROW.fullmatch(name) else os.path.abspath(name)


def read_exclusions(path: str | Path) -> frozenset[str]:
    """The names of a list, in the form in which they are compared.

    Raises:
        UserError: a file that cannot be read, is not UTF-8, or has a quoted name that is no JSON string.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the list of exclusions {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        count = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f'{path} line {count}: not UTF-8; write such a name as a JSON string, as "caf\\udce9.jpg"'
        ) from error
    names = set()
    for count, line in enumerate(text.split("\n"), start=1):
        name = _parse(line.strip(), where=f"{path} line {count}")
        if name is not None:
            names.add(normal_name(name))
    return frozenset(names)


def write_exclusions(path: str | Path, entries: Iterable[tuple[str, str]]) -> None:
    """Writes a list that `read_exclusions` reads.

    Args:
        path: file to write.
        entries: name and reason of each image; paths are written as absolute ones.

    Raises:
        UserError: the file cannot be written.
    """
    lines = [_HEADER]
    for name, reason in entries:
        reason = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
        lines.append(_written(normal_name(name)) + (f"  # {reason}" if reason else ""))
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _parse(line: str, *, where: str) -> str | None:
    if not line or line.startswith("#"):
        return None
    if not line.startswith('"'):
        return _COMMENT.split(line, maxsplit=1)[0].rstrip()
    try:
        name, end = json.JSONDecoder().raw_decode(line)
    except ValueError as error:
        raise UserError(f"{where}: a name in quotes must be a JSON string ({error})") from error
    rest = line[end:].lstrip()
    if rest and not rest.startswith("#"):
        raise UserError(f"{where}: only a comment with # may follow the name in quotes, not {rest[:40]!r}")
    return str(name)


def _written(name: str) -> str:
    plain = (
        name.isprintable()  # false for line breaks and undecodable bytes
        and name == name.strip()
        and name != ""
        and not name.startswith(('"', "#"))
        and not _COMMENT.search(name)
    )
    return name if plain else json.dumps(name)
