"""How far a command is: a bar on a terminal, else occasional lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conformer_vision.console import note

_LINE_SECONDS = 10.0
"""Seconds between two lines without a terminal."""


@contextmanager
def show_progress(doing: str, done: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr, as stdout is for the result; yield the function that is told about it.

    Args:
        doing: What the bar says in front, such as ``reading images``.
        done: What a line says in front, such as ``read``.
    """
    if not sys.stderr.isatty():
        yield lines_of_progress(note, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def lines_of_progress(
    write: Callable[[str], None], done: str, *, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Return a progress function that writes a line when ten seconds have passed since the last one."""
    last = clock()

    def progress(number: int, total: int) -> None:
        nonlocal last
        if clock() - last >= _LINE_SECONDS:
            last = clock()
            write(f"{done} {number:,} of {total:,} images")

    return progress
