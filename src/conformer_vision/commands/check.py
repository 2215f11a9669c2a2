"""The subcommand ``check``: broken, copied, leaking and unusual images, and the balance of classes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_splitting, splitting_of
from conformer_vision.commands.progress import show_progress
from conformer_vision.console import emit, say, show_table, width
from conformer_vision.errors import UserError
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.check import CheckResult

_MOST_EXAMPLES = 3


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("data", help="Images, as for train; both train and val are read.")
    add_splitting(parser, of_run=False)
    parser.add_argument("--workers", type=int | None, help="Reading processes; one per core by default.")
    parser.add_argument(
        "--min_size", type=int, default=8, help="Images with a shorter edge, in pixels, are tiny."
    )
    parser.add_argument(
        "--max_pixels",
        type=int,
        default=50_000_000,
        help="Images with more pixels, according to their header, are not decoded.",
    )
    parser.add_argument(
        "--distance",
        type=int,
        default=4,
        help="Bits (of 64) by which perceptual hashes of copies may differ, 0 to 8.",
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="Seconds after which an image counts as broken."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table.")
    parser.add_argument("--page", metavar="HTML", help="Write the result with thumbnails to this HTML file.")
    parser.add_argument(
        "--fix",
        metavar="CSV",
        help="Write a CSV list of images to leave out: those that cannot be decoded, training copies of "
        "validation images, and training copies with different labels.",
    )
    parser.add_argument(
        "--fix_duplicates",
        type=bool,
        default=False,
        help="Also list further copies of a training image within its class.",
    )
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Check; the status is 1 if something was found."""
    if options.fix_duplicates and options.fix is None:
        raise UserError("--fix_duplicates needs --fix CSV, the list it adds to")
    for name in ("page", "fix"):
        if options[name] is not None:
            check_output(options[name], f"--{name}", inputs=(options.data,))
    from conformer_vision.check import check

    with show_progress("reading images", "read") as progress:
        result = check(
            options.data,
            splitting=splitting_of(options),
            data_dir=options.data_dir,
            workers=options.workers,
            min_size=options.min_size,
            max_pixels=options.max_pixels,
            distance=options.distance,
            timeout=options.timeout,
            page=options.page,
            fix=options.fix,
            fix_duplicates=options.fix_duplicates,
            progress=progress,
        )
    if options.json:
        emit(f"{result.to_json()}\n")
    else:
        _print(result)
        if options.page is not None:
            say(f"page: {options.page}")
        if options.fix is not None:
            say(f"exclusion list: {options.fix} ({len(result.excluded):,} images)")
    return 0 if result.clean else 1


def _print(result: CheckResult) -> None:
    from conformer_vision.check.result import MEANINGS

    parts = ", ".join(f"{split.name} {split.images:,}" for split in result.splits)
    say(f"{result.images:,} images ({parts}) read in {result.seconds:.1f} s")
    if result.clean:
        say("nothing found")
    else:
        rows = []
        for kind, count in result.counts.items():
            if count:
                examples = result.examples(kind)[:_MOST_EXAMPLES]
                if width() is not None:  # a terminal has no room for two paths beside each other
                    examples = [re.sub(" ([=~]) ", r"\n  \1 ", example) for example in examples]
                more = [f"and {count - _MOST_EXAMPLES:,} more"] if count > _MOST_EXAMPLES else []
                rows.append((MEANINGS[kind][0], "\n".join([*examples, *more]), f"{count:,}"))
        show_table(("finding", "examples", "count"), rows, left=2)
    for split in result.splits:
        if split.ratio is not None:
            sizes = [count for count in split.counts.values() if count]
            say(
                f"{split.name}: {len(split.counts)} classes of {min(sizes):,} to {max(sizes):,} images, "
                f"ratio {split.ratio:.1f}"
            )
        if split.labels_line is not None:
            say(f"{split.name}: {split.labels_line}")
    for hint in result.hints:
        say(f"hint: {hint}")
