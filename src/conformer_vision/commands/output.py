"""What the subcommands print with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def console() -> Any:
    """A rich console on stdout."""
    from rich.console import Console

    # Off a terminal rich would wrap at 80 columns, and cut paths in two.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def printable(text: str) -> str:
    """The text with what no terminal can show escaped: file names need not be UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def name_broken(lines: Sequence[str]) -> int:
    """Names on stderr the images that could not be read; gives the exit status."""
    for line in lines:
        print(f"skipped: {printable(line)}", file=sys.stderr)
    if lines:
        print(f"{len(lines)} of the images could not be read", file=sys.stderr)
    return 1 if lines else 0
