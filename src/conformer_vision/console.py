"""The one door for printed text.

Printing never raises: characters that the console cannot show are escaped, and text that nobody takes any
more (``| head``, a full disk) is dropped, so that output never decides what becomes of the work.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ERRORS = "json_escapes"
_SHORTEST = 12
_NARROWEST = 20
_HANGING = "  "
_UNLIMITED = 10_000


def say(line: str = "") -> None:
    """Print a line to stdout; line breaks and other control characters in it are escaped.

    On a terminal that is too narrow for it the paths in the line are shortened, or it is wrapped between
    words.
    """
    line, columns = _one_line(line), _columns(sys.stdout)
    if columns is not None:
        line = _with_shorter_paths(line, columns) or _wrapped(line, columns)
    emit(f"{line}\n")


def note(line: str) -> None:
    """Print a line to stderr: what is not part of the result.

    On a terminal it is wrapped between words, and what is longer than a line is shortened.
    """
    line, columns = _one_line(line), _columns(sys.stderr)
    _write(sys.stderr, f"{line if columns is None else _wrapped(line, columns)}\n")


def show_command(label: str, *words: str, result: bool = True) -> None:
    """Print a command to type, to stdout if it is part of the result; nothing in it is shortened.

    Where a terminal is too narrow, it goes on in the next line as shells have it.
    """
    stream = sys.stdout if result else sys.stderr
    parts = [label, *(shlex.quote(_one_line(word)) for word in words)]
    columns = _columns(stream)
    text = " ".join(parts) if columns is None else _filled(parts, columns, end=" \\")
    _write(stream, f"{text}\n")


def emit(text: str) -> None:
    """Print text to stdout as it is, such as JSON, which stays JSON in any encoding."""
    _write(sys.stdout, text)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """Print a table that fits the terminal; long paths in it are shortened in the middle.

    Args:
        columns: Their headers.
        rows: The cells of each row; a cell may have several lines.
        left: How many columns, the first ones, are aligned on the left; the others hold numbers.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.table import Table

    rule = "──" if printable("─") == "─" else "--"
    box = Box("\n".join(["    "] * 2 + [f" {rule} "] + ["    "] * 5) + "\n", ascii=True)
    table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*(_Cell(cell) if number < left else cell for number, cell in enumerate(row)))
    console = Console(file=sys.stdout, width=width() or _UNLIMITED, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    emit("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


class _Cell:
    """Text in a table, fitted to its column."""

    def __init__(self, text: str) -> None:
        self.lines = [printable(line) for line in text.split("\n")]

    def __rich_console__(self, console: Any, options: Any) -> Iterable[Any]:
        from rich.text import Text

        yield Text("\n".join(fit(line, options.max_width) for line in self.lines))

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.cells import cell_len
        from rich.measure import Measurement

        words = [min(cell_len(word), _SHORTEST) for line in self.lines for word in line.split(" ")]
        return Measurement(max(words), max(cell_len(line) for line in self.lines))


def width() -> int | None:
    """Return the columns of the terminal (``COLUMNS`` where set), None for a file or pipe."""
    return _given_columns() or _columns(sys.stdout)


def _given_columns() -> int | None:
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) else None


def _columns(stream: TextIO | None) -> int | None:
    """Return the columns of the terminal that a stream writes to, None where it does not."""
    try:
        if stream is None or not stream.isatty():
            return None
        columns = _given_columns() or os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # closed, or no file of the system
        return None
    return max(columns, _NARROWEST) if columns else None


def fit(text: str, columns: int) -> str:
    """Shorten the paths in a line, else its longest words, in the middle until it can be printed in columns.

    A line without paths may still be longer; its words are not, so that it wraps between them.
    """
    fitting = _with_shorter_paths(text, columns)
    if fitting is not None:
        return fitting
    words = text.split(" ")
    if any(map(_is_path, words)):
        return shorten(text, columns)
    return " ".join(shorten(word, columns) for word in words)


def _with_shorter_paths(text: str, columns: int) -> str | None:
    """Shorten the paths in a line until it can be printed in columns; None where that is not enough."""
    from rich.cells import cell_len

    words = text.split(" ")
    paths = {word for word in words if _is_path(word)}
    longest = max(map(cell_len, words))
    for most in (longest, *range(min(longest, columns), _SHORTEST - 1, -1)):
        cut = {word: shorten(word, max(most, cell_len(_name(word)) + 1)) for word in paths}
        line = " ".join(cut.get(word, word) for word in words)
        if cell_len(line) <= columns:
            return line
        if not paths:
            break
    return None


def _wrapped(line: str, columns: int) -> str:
    return _filled([shorten(word, columns - len(_HANGING)) for word in line.split(" ")], columns)


def _filled(words: Sequence[str], columns: int, *, end: str = "") -> str:
    """Break text between words so that it can be printed in columns; what follows the first line is indented.

    Args:
        words: of the text; a longer word has a line of its own.
        columns: room for a line.
        end: what a line ends with that another one follows.
    """
    from rich.cells import cell_len

    lines: list[str] = []
    line = words[0]
    for word, following in zip(words[1:], [*words[2:], None], strict=True):
        room = columns if following is None else columns - len(end)
        if cell_len(f"{line} {word}") <= room:
            line = f"{line} {word}"
        else:
            lines.append(line + end)
            line = _HANGING + word
    return "\n".join([*lines, line])


def _is_path(word: str) -> bool:
    return "/" in word or os.sep in word


def _name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def shorten(path: str, columns: int) -> str:
    """Cut out of the middle of a path what does not fit, so that the name of the file stays."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(path) <= columns:
        return path
    gap = "…" if printable("…") == "…" else "..."
    room = columns - len(gap)
    end = max(room * 3 // 4, min(room, cell_len(_name(path))))
    tail = set_cell_size(path[::-1], end).rstrip()[::-1]
    return set_cell_size(path, room - end).rstrip() + gap + tail


def printable(text: str) -> str:
    """Escape what the console cannot show in a line: control characters, and what its encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return _one_line(text).encode(encoding, _ERRORS).decode(encoding)


def _one_line(text: str) -> str:
    return _CONTROL.sub(lambda match: _escape(match[0]), text)


def _escape(text: str) -> str:
    return json.dumps(text)[1:-1]


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Escape what an encoding lacks; names of files may also hold bytes that are no characters at all."""
    assert isinstance(error, UnicodeEncodeError)
    return _escape(error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _replace)


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed before Python started, as by `>&-`
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError):  # it may have been closed
        stream.write(text.encode(encoding, _ERRORS).decode(encoding))
        stream.flush()


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


@contextmanager
def warnings_noted() -> Iterator[None]:
    """Print what the package logs within the block as notes."""
    logger, handler = logging.getLogger(__package__), _Notes(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


# ---- the streams of the command's own process ------------------------------------------------------


class _Descriptor(io.FileIO):
    """Writes to a descriptor; drops what cannot be written, and keeps the first error."""

    error: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        """Write bytes; never raises."""
        try:
            return super().write(data)
        except OSError as error:
            self.error = self.error or error
            return len(data)


def open_streams() -> None:
    """Make stdout and stderr of this process such that printing by any library never raises either."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # one that was closed: the next file to be opened would take its place
    os.close(descriptor)
    sys.stdout, sys.stderr = _reopened(sys.stdout, 1), _reopened(sys.stderr, 2)


def _reopened(stream: Any, descriptor: int) -> TextIO:
    # With PYTHONUNBUFFERED there is no buffer above the file.
    if stream is not None and not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
        stream.reconfigure(errors=_ERRORS)  # the console of Windows, which shows every character
        return stream  # type: ignore[no-any-return]
    raw = _Descriptor(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=None if stream is None else stream.encoding,
        errors=_ERRORS,
        line_buffering=True,
    )


def lost() -> OSError | None:
    """Return why the command's output is being dropped: its reader has gone, or the disk is full."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Descriptor) else None
