"""The subcommand ``benchmark``: which form of a model is fastest here, how large, and how exact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_inference
from conformer_vision.console import note, say, show_table
from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.benchmark import BenchmarkResult


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("model", help="Run folder, weights file, or name of published weights.")
    parser.add_argument(
        "--forms",
        nargs="+",
        type=str,
        help="eager, folded, onnx, openvino and others such as onnx-int8; by default all that are possible.",
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="Batch sizes.")
    parser.add_argument(
        "--repeats", type=int, default=30, help="Rounds, in each of which every form has one turn."
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="Time limit per batch size, after three rounds."
    )
    parser.add_argument("--threads", type=int | None, help="CPU threads. Default: PyTorch's number.")
    add_inference(parser)
    parser.add_argument("--json", metavar="FILE", type=str | None, help="Write all figures to a JSON file.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Compare the forms; return 1 if the logits of one are wrong."""
    if options.json is not None and not Path(options.json).absolute().parent.is_dir():
        raise UserError(f"cannot write {options.json}: the folder {Path(options.json).parent} does not exist")
    if options.json is not None:
        check_output(options.json, "--json", inputs=(options.model,))
    from conformer_vision.benchmark import BenchmarkConfig, benchmark

    config = BenchmarkConfig(
        model=options.model,
        forms=None if options.forms is None else tuple(options.forms),
        batch=tuple(options.batch),
        repeats=options.repeats,
        seconds=options.seconds,
        threads=options.threads,
        device=options.device,
    )
    result = benchmark(config, say=note)
    _print(result)
    if options.json is not None:
        with atomic_path(options.json) as temporary:
            temporary.write_text(result.to_json() + "\n", encoding="utf-8", errors="backslashreplace")
        say(f"figures: {options.json}")
    wrong = [row for row in result.rows if row.wrong]
    for row in wrong:
        note(f"wrong: {row.form}, batch {row.batch}: logits differ by {row.difference:.1e}")
    return 1 if wrong else 0


def _print(result: BenchmarkResult) -> None:
    say(f"{result.machine}, torch {result.versions['torch']}")
    height, width = result.input_size[1:]
    columns = ("form", "median ms", "p95 ms", "images/s", "speedup", "file MB", "difference")
    for size in sorted({row.batch for row in result.rows}):
        rows = [row for row in result.rows if row.batch == size]
        say()
        say(f"batch {size}, {height} x {width} pixels, {rows[0].rounds} rounds")
        cells = [
            (
                row.form,
                f"{row.median_ms:,.1f}",
                f"{row.p95_ms:,.1f}",
                f"{row.images_per_second:,.1f}",
                f"{row.speedup:.2f}",
                f"{row.file_mb:,.1f}",
                f"{'WRONG ' * row.wrong}{row.difference:.0e}",
            )
            for row in rows
        ]
        show_table(columns, cells)
    say()
    for line in result.left_out:
        say(f"not possible here: {line}")
    say(f"speedup: over {result.rows[0].form}. difference: of the logits from the model's, relative.")
    if any(row.form.endswith("int8") for row in result.rows):
        say("int8 is calibrated on two photos here; 'export' calibrates and evaluates it on your images.")
    _print_next(result)


def _print_next(result: BenchmarkResult) -> None:
    """Print the fastest form, and the command that writes it."""
    best = min((row for row in result.rows if not row.wrong), key=lambda row: row.median_ms, default=None)
    if best is None:
        return
    say(f"fastest with batch {best.batch}: {best.form}, {best.speedup:.2f} times {result.rows[0].form}")
    if best.form not in ("eager", "folded"):
        form, _, precision = best.form.partition("-")
        command = f"conformer-vision export {result.model} --format {form}"
        say(command + (f" --precision {precision}" if precision else ""))
