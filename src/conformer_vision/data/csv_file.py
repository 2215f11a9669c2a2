"""Reading CSV and TSV files as spreadsheets and scripts write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from conformer_vision.errors import UserError


def read_csv(path: Path, *, errors: str = "strict") -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty, each with the number of the line that it ends on.

    A byte order mark, line ends of any system, and ``;`` or tabs in place of commas are understood.
    Short rows are filled up with empty cells.

    Args:
        path: the file; a tab separates the cells of a ``.tsv``.
        errors: ``strict``, or ``surrogateescape`` for files with names that are not UTF-8.

    Raises:
        UserError: a file that cannot be read, is empty or is not UTF-8. Iterating raises it for a row
            with more cells than the header, or with quotes that do not match.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the file as UTF-8") from error
    # Spreadsheets of many countries write ";" into files called .csv.
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=text.split("\n", 1)[0].count)
    lines = _lines(path, csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    _, header = next(lines, (1, []))
    if not header:
        raise UserError(f"{path} is empty; its first line must name the columns")
    return header, _checked(path, lines, width=len(header))


def _lines(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):  # spreadsheets leave lines of separators at the end
                yield reader.line_num, cells  # type: ignore[attr-defined]
    except csv.Error as error:
        line = reader.line_num  # type: ignore[attr-defined]
        raise UserError(f"{path} line {line} cannot be read as a table ({error})") from error


def _checked(
    path: Path, lines: Iterator[tuple[int, list[str]]], *, width: int
) -> Iterator[tuple[int, list[str]]]:
    for line, cells in lines:
        if any(cell.strip() for cell in cells[width:]):
            raise UserError(
                f"{path} line {line} has {len(cells)} cells, but the header has {width}; "
                "put values that contain a separator into double quotes"
            )
        yield line, cells + [""] * (width - len(cells))
