"""How the subcommands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def console() -> Any:
    """Return a rich console on stdout."""
    from rich.console import Console

    # Off a terminal rich would wrap at 80 columns, and cut paths in two.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def printable(text: str) -> str:
    """Escape what the terminal cannot show: file names need not be UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def name_broken(lines: Sequence[str]) -> int:
    """Name on stderr the images that could not be read; return the exit status."""
    for line in lines:
        print(f"skipped: {printable(line)}", file=sys.stderr)
    if lines:
        print(f"{len(lines)} of the images could not be read", file=sys.stderr)
    return 1 if lines else 0
