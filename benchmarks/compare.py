"""Compare Conformers with their plain formulation and with timm's models, in every form, in one run.

    python benchmarks/compare.py [conformer_small_patch16_224 ...] [--batch 1 8] [--peers none]

Models that are given by name have random weights. Everything takes turns in the same rounds. The plain
formulation and the model as trained are the baselines of the ratio and of the difference; the ceiling is
what the best of PyTorch's, oneDNN's and OpenBLAS's large matrix products reaches on the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from comparison import ComparisonConfig, ComparisonResult, compare, draw_plot
from comparison.result import Row
from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path

_NONE = ["none"]


def build_parser() -> argparse.ArgumentParser:
    """Return the options, whose defaults are those of `ComparisonConfig`."""
    default = ComparisonConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        default=default.models,
        help="names of models of timm, run folders, weights files",
    )
    add("--runtimes", nargs="+", help="such as eager, compiled, folded, onnx-int8, openvino-bf16")
    add("--batch", nargs="+", type=int, default=default.batch, help="batch sizes")
    add("--peers", nargs="+", help="models of timm to compare with, or none")
    add("--peer-runtimes", nargs="+", default=default.peer_runtimes, help="as --runtimes, for the peers")
    add("--no-reference", dest="reference", action="store_false", help="leave out the plain formulation")
    add("--repeats", type=int, default=default.repeats, help="rounds, with one turn for each in every round")
    add(
        "--seconds", type=float, default=default.seconds, help="time limit per batch size, after three rounds"
    )
    add("--threads", type=int, help="CPU threads")
    add("--device", default=default.device, help="auto, cpu or cuda")
    add("--size", type=int, help="side of the images in pixels")
    add("--json", type=Path, help="write all figures to this file")
    add("--plot", type=Path, help="draw speed over multiply-adds to this PNG file")
    return parser


def main() -> int:
    """Print the tables; return 1 if a form gives wrong answers."""
    options = vars(build_parser().parse_args())
    figures, plot, peers = (options.pop(name) for name in ("json", "plot", "peers"))
    config = ComparisonConfig(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()},
        peers=() if peers == _NONE else None if peers is None else tuple(peers),
    )
    result = compare(config, say=lambda line: print(line, file=sys.stderr, flush=True))
    print_result(result)
    if figures is not None:
        with atomic_path(figures) as temporary:
            temporary.write_text(result.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        draw_plot(result, plot)
    return 1 if result.wrong else 0


def print_result(result: ComparisonResult) -> None:
    """Print one table per batch size, the fastest rate of matrix products, and notes."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    print(f"{result.machine}, torch {result.versions['torch']}")
    rates = ", ".join(f"{name} {rate / 1e9:,.0f}" for name, rate in result.ceilings.items())
    print(f"matrix products (the ceiling) in 1e9 multiply-adds per second: {rates}")
    height, width = result.shape[1:]
    for size in sorted({row.batch for row in result.rows}):
        rows = [row for row in result.rows if row.batch == size]
        table = Table(
            title=f"batch {size}, {height} × {width} pixels, medians of {rows[0].rounds} rounds",
            title_justify="left",
        )
        for name in ("model", "runtime", *_COLUMNS):
            table.add_column(name, justify="left" if name in ("model", "runtime") else "right")
        for row in rows:
            cells = [_cell(row, name) for name in _COLUMNS]
            table.add_row(escape(row.model), row.runtime, *cells)
        console.print(table)
    print("ratio: of the reference's time, or else of eager's, to this one's; above 1 is faster.")
    print("memory: peak above what the imported libraries take. load: from the file to the first answer.")
    for note in result.notes:
        print(note)


_COLUMNS = (
    "images/s",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "ratio",
    "of ceiling",
    "memory MB",
    "load s",
    "difference",
    "M params",
    "GMACs",
)


def _cell(row: Row, column: str) -> str:
    values: dict[str, tuple[float | None, str]] = {
        "images/s": (row.images_per_second, ",.1f"),
        "p50 ms": (row.latency_ms["p50"], ",.1f"),
        "p90 ms": (row.latency_ms["p90"], ",.1f"),
        "p99 ms": (row.latency_ms["p99"], ",.1f"),
        "ratio": (None if row.ratio is None else row.ratio.median, ".2f"),
        "of ceiling": (row.share_of_ceiling, ".0%"),
        "memory MB": (row.memory_mb, ",.0f"),
        "load s": (row.load_seconds + row.first_answer_seconds, ".1f"),
        "difference": (row.difference, ".0e"),
        "M params": (row.parameters and row.parameters / 1e6, ".1f"),
        "GMACs": (row.macs and row.macs / 1e9, ".2f"),
    }
    value, form = values[column]
    text = "–" if value is None else format(value, form)
    return f"WRONG {text}" if column == "difference" and row.wrong else text


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
