"""The subcommand ``export``: write a trained model as a file that other programs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_arch
from conformer_vision.console import note, say, show_table
from conformer_vision.export.formats import FORMATS
from conformer_vision.inference.conversion.formats import CALIBRATION_IMAGES, Precision
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser

if TYPE_CHECKING:
    from conformer_vision.export import Exported


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("model", help="Run folder, weights, checkpoint or the name of published weights.")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="Format of the file.")
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision), help="Of the arithmetic.")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=str | None,
        help="The file, or the folder of format hf; in the run folder by default.",
    )
    parser.add_argument(
        "--push_to_hub",
        metavar="NAME",
        type=str | None,
        help="Repository on the Hugging Face Hub (user/name) to send the folder of format hf to.",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        help="Labelled images to check, calibrate and evaluate with; the run's own by default.",
    )
    parser.add_argument(
        "--calibration_images",
        type=int,
        default=CALIBRATION_IMAGES,
        help="Number of images that int8 is calibrated on.",
    )
    add_arch(parser)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    from conformer_vision.export import export

    exported = export(
        options.model,
        format=options.format,
        precision=options.precision,
        output=options.output,
        data=options.data,
        calibration_images=options.calibration_images,
        arch=options.arch,
        push_to_hub=options.push_to_hub,
        say=note,
    )
    _print(exported)
    return 0


def _print(exported: Exported) -> None:
    difference = exported.difference
    say(f"{exported.path}: {exported.format}, {exported.precision}, {exported.size / 1e6:.1f} MB")
    say(
        f"largest difference from the model on {difference.images} images: "
        f"{difference.relative:.1e} of the logits, {difference.probability:.1e} in probability; "
        f"the same answer for {difference.agreement:.1%}"
    )
    if exported.kept_float:
        say(f"kept in float: {', '.join(exported.kept_float)}")
    if exported.accuracy is None:
        return
    before, after = exported.accuracy
    first, others = before.metrics[0], after.heads
    rows = [
        (head, first.text(figures.of(first)), first.text(others[head].of(first)))
        for head, figures in before.heads.items()
    ]
    title = first.title
    show_table(("head", f"{title} of the model, %", f"{title} in {exported.precision}, %"), rows)
