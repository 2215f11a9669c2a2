"""The subcommand ``evaluate``: the figures of a trained model on labelled images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import (
    add_arch,
    add_inference,
    add_input_size,
    add_runtime,
    add_splitting,
    add_unsure,
    splitting_of,
)
from conformer_vision.commands.output import name_broken
from conformer_vision.commands.selective import print_selective
from conformer_vision.console import emit, note, say, show_table
from conformer_vision.errors import UserError
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.inference import Evaluation, MultilabelEvaluation


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument(
        "model",
        help="Run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights.",
    )
    parser.add_argument("--data", required=True, help="Labelled images, as train takes them.")
    parser.add_argument("--split", default="val", choices=["val", "train", "all"], help="Part of the data.")
    add_splitting(parser, of_run=True)
    parser.add_argument(
        "--exclude",
        metavar="LIST",
        type=str | None,
        help="List of images to leave out; the run's own is not applied.",
    )
    add_inference(parser, batch_size=64, workers=True)
    add_runtime(parser)
    add_input_size(parser)
    add_arch(parser)
    parser.add_argument(
        "--confusion_matrix", metavar="PNG", type=str | None, help="Also draw the confusion matrix."
    )
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        type=str | None,
        help="Also write every image with its truth, answer and probabilities to this .csv or .parquet.",
    )
    add_unsure(parser)
    parser.add_argument(
        "--ood",
        metavar="FOLDER",
        type=str | None,
        help="Images of other things, to see how well they are told (docs/unsure.md).",
    )
    parser.add_argument(
        "--risk_coverage",
        metavar="PNG",
        type=str | None,
        help="Also draw the errors among the surest answers.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    image, table = options.confusion_matrix, options.predictions
    for name in ("confusion_matrix", "predictions", "risk_coverage"):
        if options[name] is not None:
            check_output(options[name], f"--{name}", inputs=(options.model, options.data, options.exclude))
    from conformer_vision.inference import Evaluation, evaluate, save_confusion_matrix, save_predictions
    from conformer_vision.inference.labelled import read_run_data
    from conformer_vision.inference.predictions import check_predictions_file
    from conformer_vision.inference.selective import save_risk_coverage
    from conformer_vision.runtime.views import parse_views

    if table is not None:
        check_predictions_file(table)

    evaluation = evaluate(
        options.model,
        options.data,
        split=options.split,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        input_size=options.input_size,
        splitting=splitting_of(options, default=read_run_data(options.model).splitting),
        data_dir=options.data_dir,
        exclude=options.exclude,
        arch=options.arch,
        keep_all=table is not None,
        coverage=options.coverage,
        conformal=options.conformal,
        ood=options.ood,
        tta=options.tta,
        runtime=options.runtime,
        precision=options.precision,
    )
    selective = evaluation.selective if isinstance(evaluation, Evaluation) else None
    if options.json:
        emit(f"{evaluation.to_json()}\n")
    else:
        _print(evaluation)
        if selective is not None:
            print_selective(selective)
    other = selective and selective.unknown
    status = name_broken([*evaluation.broken, *(other.broken if other else ())])
    if options.tta is not None:
        note(f"test-time augmentation: {parse_views(options.tta).cost}")
    if image is not None:  # last, so that the numbers are out if it cannot be written
        if not isinstance(evaluation, Evaluation):
            raise UserError(
                f"--confusion_matrix: {options.model} gives an image any number of classes; leave it out"
            )
        save_confusion_matrix(evaluation.confusion, evaluation.classes, image)
        (note if options.json else say)(f"confusion matrix: {image}")
    if options.risk_coverage is not None:
        if selective is None:
            raise UserError(f"--risk_coverage: {options.model} has no thresholds, so no answer is unsure")
        save_risk_coverage(selective, options.risk_coverage)
        (note if options.json else say)(f"risk-coverage curve: {options.risk_coverage}")
    if table is not None:
        save_predictions(evaluation.answers, evaluation.classes, table)
        (note if options.json else say)(f"predictions: {table}")
    return status


def _print(evaluation: Evaluation | MultilabelEvaluation) -> None:
    say(f"{evaluation.samples:,} images, {evaluation.images_per_second:,.0f} per second")
    heads, classes = evaluation.tables()
    show_table(heads.columns, heads.rows)
    say(heads.title)
    if evaluation.ranked < evaluation.samples:
        say(f"AUROC and average precision are those of {evaluation.ranked:,} images, which fit into memory")
    say(classes.title)
    show_table(classes.columns, classes.rows)
    for line in evaluation.remarks():
        say(line)
    if evaluation.broken:
        say(f"left out: {len(evaluation.broken):,} that could not be read")
