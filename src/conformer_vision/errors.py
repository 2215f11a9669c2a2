"""Errors that a user can cause and fix, and the text of their messages."""

from __future__ import annotations

import difflib
import errno
import re
import shlex
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LONGEST_REASON = 300
_LONGEST_NAME = 100
_URL = re.compile(r"(https?|ftp|file|s3|gs|hf):/|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""An address; pathlib leaves one slash of two."""


class UserError(ValueError):
    """A mistake in what the user gave: a path, the contents of a file, the value of an option.

    The message is one line that names the file or value and the remedy. The command line
    prints it without a traceback and exits with status 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""

    signal = signal.SIGTERM


_at_command_line = False


@contextmanager
def command_line_words() -> Iterator[None]:
    """Name options within the block as the command line does."""
    global _at_command_line
    before, _at_command_line = _at_command_line, True
    try:
        yield
    finally:
        _at_command_line = before


def words(command_line: str, python: str) -> str:
    """Return those words of a message that suit where the user is."""
    return command_line if _at_command_line else python


def option(name: str, value: object = None) -> str:
    """Name an option: ``--lr 0.1`` at the command line, ``lr=0.1`` in Python, or without a value."""
    if value is None:
        return words(f"--{name}", name)
    plain = value if isinstance(value, int | float) else str(value)
    return words(f"--{name} {shlex.quote(str(plain))}", f"{name}={plain!r}")


def resuming(folder: object) -> str:
    """Return how to continue the run in a folder."""
    return words(f"--resume {shlex.quote(str(folder))}", f"resume({str(folder)!r})")


def reason_of(error: BaseException) -> str:
    """Return what another library's error says, on one line: its text, or its type where it has none."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    # File names in it need not be UTF-8.
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, for libraries that append a stack trace to it."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def one_line(name: str) -> str:
    """Return a name as messages show it: quoted and escaped if it holds line breaks or the like."""
    return name if name.isprintable() else repr(name)


def is_url(name: object) -> bool:
    """Tell whether a name is an address, and not the path of a file."""
    return _URL.match(str(name)) is not None


def refuse_url(name: object) -> None:
    """Refuse an address where the path of a file is expected.

    Raises:
        UserError: The name is an address.
    """
    if is_url(name):
        raise UserError(f"{name}: URLs are not fetched; download the file and give its path")


def some_names(names: Iterable[str], *, most: int = 5) -> str:
    """Return names on one line, separated by commas; only the first few if there are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    cut = (name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…" for name in names[:most])
    return ", ".join(map(one_line, cut)) + more


def nearest(name: object, known: Iterable[str]) -> str:
    """Return ``; did you mean NAME?``, or nothing if no known name is similar."""
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def machine_error(error: BaseException) -> str | None:
    """Return the line for an error that means that the machine has no memory or descriptors left.

    None for any other error.
    """
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files; raise the limit (ulimit -n)"
    text = str(error).lower()
    if isinstance(error, ImportError) and "failed to map segment" in text:
        return f"memory has run out while loading libraries ({first_line(error)}); raise ulimit -v"
    lacks = "out of memory" in text or "allocate memory" in text  # of torch, on a GPU and on the CPU
    if isinstance(error, MemoryError) or (lacks and isinstance(error, (RuntimeError, OSError))):
        return f"memory has run out ({first_line(error)}); give a smaller batch_size, input_size or model"
    return None
