"""The subcommand ``models``: list the Conformers."""

from __future__ import annotations

import json

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.console import emit, say, show_table
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser("List the Conformers by name, size and cost.")
    parser.add_argument("--json", action="store_true", help="Print a JSON list instead of a table.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    from conformer_vision.models.variants import describe_variants

    rows = describe_variants()
    if options.json:
        emit(f"{json.dumps(rows, indent=2)}\n")
        return 0
    cells = [
        (
            row["name"],
            f"{row['input_size']} px",
            str(row["tokens"]),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gmacs']:.2f}",
        )
        for row in rows
    ]
    say("Conformers (parameters with 1,000 classes)")
    show_table(("name", "image", "tokens", "parameters", "GMACs"), cells)
    return 0
