"""The subcommand ``report``: write the report of a run again."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.output import name_broken
from conformer_vision.parsing import build_parser as plain_parser


def build_parser() -> ArgumentParser:
    """The options of the subcommand."""
    parser = plain_parser("Write a run's report.html again, and calibrate its model.")
    parser.add_argument("run", help="Run folder.")
    parser.add_argument("--data", type=str | None, help="The run's data, if it has moved.")
    parser.add_argument("--batch_size", type=int, default=64, help="Images per forward pass.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read images.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another torch device.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Write the report; return the exit status."""
    from conformer_vision.report import examine, save_report

    findings = examine(
        options.run,
        data=options.data,
        device=options.device,
        batch_size=options.batch_size,
        workers=options.workers,
    )
    print(f"report: {save_report(findings)}")
    return name_broken(findings.broken)
