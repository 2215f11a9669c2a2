"""The subcommand ``compare``: two trained models side by side, on images that neither was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_inference
from conformer_vision.commands.output import name_broken
from conformer_vision.console import emit, note, say, show_table
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.inference.comparison import PairedTest, Turn
    from conformer_vision.report.comparing import Comparison

_MOST_NAMED = 5
"""Images that are named for each way of changing sides; --json and --page have more."""


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    what = "Run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights"
    parser.add_argument("a", help=f"{what}.")
    parser.add_argument("b", help=f"{what}; the other one.")
    parser.add_argument(
        "--data", type=str | None, help="Labelled images; the held-out ones of both runs by default."
    )
    parser.add_argument("--split", default="val", choices=["val", "train", "all"], help="Part of the data.")
    parser.add_argument(
        "--data_dir", metavar="FOLDER", type=str | None, help="Where named sets are stored; A's by default."
    )
    add_inference(parser, batch_size=64, workers=True)
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of tables.")
    parser.add_argument(
        "--page",
        metavar="FILE.html",
        type=str | None,
        help="Also write a page with curves and the images that changed sides.",
    )
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    if options.page is not None:
        check_output(options.page, "--page", inputs=(options.a, options.b, options.data))
    from conformer_vision.report.compared import write_compared
    from conformer_vision.report.comparing import compare

    comparison = compare(
        options.a,
        options.b,
        data=options.data,
        split=options.split,
        data_dir=options.data_dir,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    if options.json:
        emit(f"{comparison.to_json()}\n")
    else:
        _print(comparison)
    status = name_broken(comparison.broken)
    if options.page is not None:
        write_compared(options.page, comparison)
        (note if options.json else say)(f"page: {options.page}")
    return status


def _print(comparison: Comparison) -> None:
    from conformer_vision.inference.metrics import METRICS

    for label, side in (("A", comparison.a), ("B", comparison.b)):
        say(f"{label}: {side.given} ({', '.join(filter(None, (side.model, side.state)))})")
    say(f"images: {comparison.images:,} of {comparison.data}")
    for line in comparison.notes:
        say(f"note: {line}")
    for head in reversed(comparison.heads):
        found = comparison.heads[head]
        rows = []
        for metric in METRICS if head == "fused" else METRICS[:1]:
            if metric.name in found.difference:
                title = f"{metric.title}, %" if metric.percent else metric.title
                texts = (metric.text(each.of(metric)) for each in (found.a, found.b))
                rows.append((title, *texts, metric.signed(found.difference[metric.name])))
        show_table((head, "A", "B", "B - A"), rows)
    test = comparison.test
    say(
        f"right: both {test.both:,}, only A {test.only_a:,}, only B {test.only_b:,}, neither"
        f" {test.neither:,}; {_named(test)} p = {test.p:.2g}"
    )
    say("in brackets: 95 % intervals; a difference whose interval holds 0 may be chance")
    if comparison.options is None:
        say("changed options: unknown, as one of the models has no config.yaml")
    elif comparison.options:
        show_table(("option", "A", "B"), [(n, str(a), str(b)) for n, (a, b) in comparison.options.items()])
    else:
        say("changed options: none")
    _print_turns("right by A, wrong by B", comparison.lost, "b")
    _print_turns("wrong by A, right by B", comparison.won, "a")


def _named(test: PairedTest) -> str:
    return "McNemar" if test.groups is None else f"McNemar by {test.groups:,} groups"


def _print_turns(title: str, turns: list[Turn], wrong: str) -> None:
    say(f"{title}: {len(turns):,}")
    for turn in turns[:_MOST_NAMED]:
        say(f"  {turn.name}: {turn.truth}, taken for {getattr(turn, wrong)}")
