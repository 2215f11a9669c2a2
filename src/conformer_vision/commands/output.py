"""What several subcommands print."""

from __future__ import annotations

from collections.abc import Sequence

from conformer_vision.console import note


def name_broken(lines: Sequence[str]) -> int:
    """Name on stderr the images that could not be read; return the exit status."""
    for line in lines:
        note(f"skipped: {line}")
    if lines:
        note(f"{len(lines)} of the images could not be read")
    return 1 if lines else 0
