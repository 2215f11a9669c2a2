"""The subcommand ``benchmark``: speed, memory and load time of models in every form, in one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.output import console, printable
from conformer_vision.parsing import build_parser as plain_parser

if TYPE_CHECKING:
    from conformer_vision.benchmark import BenchmarkResult
    from conformer_vision.benchmark.result import Row

_NONE = "none"


def build_parser() -> ArgumentParser:
    """The options of the subcommand."""
    parser = plain_parser("Measure the speed, memory and load time of models in every form.")
    parser.add_argument(
        "models",
        nargs="*",
        default=["conformer_small_patch16_224"],
        metavar="MODEL",
        help="Name of a model of timm, run folder, .safetensors or exported file; a Conformer's reference is "
        "measured beside it.",
    )
    parser.add_argument(
        "--runtimes",
        nargs="+",
        type=str,
        help="Of eager, compiled, folded, folded-compiled, folded-reduce-overhead, folded-max-autotune, "
        "onnx, openvino, torch-export, torchscript and reference, with -bf16, -fp16 or -int8 behind it for "
        "another precision than fp32, as onnx-int8. Where not given: eager, compiled, folded and every "
        "export in fp32 that can be had.",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32], help="Images at once.")
    parser.add_argument(
        "--peers",
        nargs="+",
        type=str,
        help="Models of timm to measure beside, or none; seven of like accuracy where not given.",
    )
    parser.add_argument(
        "--peer_runtimes", nargs="+", type=str, default=["eager"], help="What runs the peers; as --runtimes."
    )
    parser.add_argument(
        "--reference", type=bool, default=True, help="Measure the plain formulation of Conformers too."
    )
    parser.add_argument(
        "--repeats", type=int, default=30, help="Rounds, in each of which everything takes one turn."
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=600.0,
        help="No further round of a batch size begins after them, once there are three.",
    )
    parser.add_argument("--threads", type=int | None, help="CPU threads; PyTorch's number where not given.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another of torch's.")
    parser.add_argument(
        "--size", type=int | None, help="Side of the images in pixels; the first model's where not given."
    )
    parser.add_argument("--json", metavar="FILE", type=str | None, help="Write all figures as JSON.")
    parser.add_argument(
        "--plot", metavar="PNG", type=str | None, help="Draw speed over multiply-adds to this file."
    )
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Measure; the status is 1 where a form gives wrong answers."""
    from conformer_vision.benchmark.config import BenchmarkConfig, check_target

    config = BenchmarkConfig(
        models=tuple(options.models),
        runtimes=None if options.runtimes is None else tuple(options.runtimes),
        batch=tuple(options.batch),
        peers=_peers(options.peers),
        peer_runtimes=tuple(options.peer_runtimes),
        reference=options.reference,
        repeats=options.repeats,
        seconds=options.seconds,
        threads=options.threads,
        device=options.device,
        size=options.size,
    )
    targets = [Path(name) for name in (options.json, options.plot) if name is not None]
    for target in targets:
        check_target(target)
    from conformer_vision.benchmark import benchmark

    result = benchmark(config, say=lambda line: print(printable(line), file=sys.stderr, flush=True))
    _print(result)
    if options.json is not None:
        from conformer_vision.files import atomic_path

        with atomic_path(options.json) as temporary:
            temporary.write_text(result.to_json() + "\n", encoding="utf-8", errors="backslashreplace")
        print(f"figures: {printable(options.json)}")
    if options.plot is not None:
        from conformer_vision.benchmark import draw_plot

        draw_plot(result, Path(options.plot))
        print(f"plot: {printable(options.plot)}")
    for row in result.wrong:
        reason = "not finite" if row.difference is None else f"differ by {row.difference:.1e}"
        print(
            f"wrong: {printable(row.model)} {row.runtime}, batch {row.batch}: its logits {reason}",
            file=sys.stderr,
        )
    return 1 if result.wrong else 0


def _peers(names: list[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return () if names == [_NONE] else tuple(names)


def _print(result: BenchmarkResult) -> None:
    from rich.markup import escape
    from rich.table import Table

    machine = result.machine
    place = machine.gpu or f"{machine.processor}, {machine.threads} threads on {machine.cores} cores"
    print(printable(f"{place}, torch {result.versions.get('torch', '?')}"))
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
            table.add_row(escape(printable(row.model)), row.runtime, *cells)
        console().print(table)
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
