"""The subcommand ``report``: write the report of a run again."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_inference
from conformer_vision.commands.output import name_broken
from conformer_vision.console import note, say
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("run", help="Run folder.")
    parser.add_argument("--data", type=str | None, help="The run's data, if it has moved.")
    add_inference(parser, batch_size=64, workers=True)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Write the report; return the exit status."""
    from conformer_vision.report import examine, save_report

    findings = examine(
        Path(options.run),
        data=options.data,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    calibration = findings.calibration
    for line in findings.summary:
        say(line)
    after = "" if calibration.after is None else f", {calibration.after.ece:.2%} after scaling"
    say(f"calibration error {calibration.before.ece:.2%}{after}")
    if findings.stored is not None:
        say(findings.stored)
    if findings.note is not None:
        note(findings.note)
    status = name_broken(findings.broken)
    save_report(findings)  # last, so that the numbers are out if it cannot be written
    say(f"report: {findings.path}")
    return status
