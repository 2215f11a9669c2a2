"""The subcommand ``models``: list the Conformers."""

from __future__ import annotations

import csv
import json
from importlib.resources import files
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.console import emit, say, show_table, width
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser

_ONE_LINE = 64
"""Columns in which a row fits on one line."""
_ABOUT = (
    "weights: download gets those of ImageNet, once; bundled are",
    "those of 20 classes of Tiny ImageNet. px: edge of the image;",
    "any from 32 works. params: with 1,000 classes. GMACs: of an",
    "image, counted as published. speed: images per second on a",
    "CPU, over those of conformer_tiny_patch16_224.",
)


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("--json", action="store_true", help="Print a JSON list instead of a table.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    rows = read_table()
    if options.json:
        emit(f"{json.dumps(rows, indent=2)}\n")
        return 0
    narrow = (width() or _ONE_LINE) < _ONE_LINE
    cells = []
    for row in rows:
        name = (f"{row['name']}\n  weights: {row['weights']}",) if narrow else (row["name"], row["weights"])
        size, parameters = str(row["input_size"]), f"{row['parameters'] / 1e6:.1f} M"
        cells.append((*name, size, parameters, f"{row['gmacs']:.2f}", f"{row['speed']:g}x"))
    columns = ("name",) if narrow else ("name", "weights")
    show_table((*columns, "px", "params", "GMACs", "speed"), cells, left=len(columns))
    for line in _ABOUT:
        say(line)
    return 0


def read_table() -> list[dict[str, Any]]:
    """Return name, weights, input size, parameters, GMACs and speed of every Conformer.

    They are stored, because building the models takes seconds; benchmarks/macs.py writes them.
    """
    text = files("conformer_vision").joinpath("models/variants.csv").read_text(encoding="utf-8")
    kinds = {"input_size": int, "parameters": int, "gmacs": float, "speed": float}
    return [
        {name: kinds.get(name, str)(value) for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]
