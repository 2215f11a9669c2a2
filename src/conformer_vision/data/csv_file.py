"""Reading CSV and TSV files as spreadsheets and scripts write them, and writing CSV."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path


def read_csv(path: Path, *, errors: str = "strict") -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty, each with the number of the line that it ends on.

    UTF-8, or UTF-16 behind a byte order mark; line ends of any system; ``;``, tabs or ``|`` in place of
    commas, also where a first line ``sep=;`` says so; a space after each separator. Short rows are
    filled up with empty cells.

    Args:
        path: the file; a tab separates the cells of a ``.tsv``.
        errors: ``strict``, or ``surrogateescape`` for files with names that are not UTF-8.

    Raises:
        UserError: a file that cannot be read, is empty or is not UTF-8. Iterating raises it for a row
            with more cells than the header, or with quotes that do not match.
    """
    try:
        data = path.read_bytes()
        is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_wide else "utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the file as UTF-8") from error
    said = re.match(r'"?sep=([^\r\n"]|\t)"?(?:\r\n|\r|\n)', text, re.IGNORECASE)  # Excel's own first line
    text = text if said is None else text[said.end() :]
    # Of the header, what is outside quotes.
    header_line = re.sub(r'"[^"]*"', "", re.match(r'(?:"[^"]*"|[^"\r\n])*', text.lstrip())[0])  # type: ignore[index]
    # Spreadsheets of many countries write ";" into files called .csv.
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header_line.count)
    separator = separator if said is None else said[1]
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        skipinitialspace=f"{separator} " in header_line,
    )
    lines = _lines(path, reader, before=int(said is not None))
    _, header = next(lines, (1, []))
    if not header:
        raise UserError(f"{path} is empty; its first line must name the columns")
    return [name.strip() for name in header], _checked(path, lines, width=len(header))


def _lines(path: Path, reader: Iterator[list[str]], *, before: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with its last line, after a number of lines before."""
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):  # spreadsheets leave lines of separators at the end
                yield reader.line_num + before, cells  # type: ignore[attr-defined]
    except csv.Error as error:
        line = reader.line_num + before  # type: ignore[attr-defined]
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


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file as a whole or not at all; names that are not UTF-8 are kept byte for byte.

    Raises:
        UserError: the file cannot be written.
    """
    # CSV's own line end, \r\n: with another one Python 3.11 does not quote a \r inside a name.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
