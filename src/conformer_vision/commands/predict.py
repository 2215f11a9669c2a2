"""The subcommand ``predict``: classify images."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import add_inference, add_input_size
from conformer_vision.commands.output import console, printable
from conformer_vision.errors import UserError
from conformer_vision.parsing import build_parser as plain_parser

if TYPE_CHECKING:
    from conformer_vision.inference import Prediction


def build_parser() -> ArgumentParser:
    """Build the parser of the subcommand."""
    parser = plain_parser("Classify images with a trained model.")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[MODEL] IMAGE_OR_FOLDER",
        help="Images or folders of images. A model first: run folder, weights, checkpoint, ONNX or OpenVINO "
        "file, or the name of published weights; without one the bundled weights are used.",
    )
    parser.add_argument("--top_k", type=int, default=3, help="Number of classes per image.")
    add_inference(parser, batch_size=32)
    add_input_size(parser)
    parser.add_argument("--json", action="store_true", help="Print a JSON list instead of a table.")
    parser.add_argument("--csv", action="store_true", help="Print CSV instead of a table.")
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    if options.json and options.csv:
        raise UserError("--json and --csv exclude each other; give one of them")
    from conformer_vision.inference import Predictor

    model, images = _take_model(options.inputs)
    predictor = Predictor(
        model, device=options.device, batch_size=options.batch_size, input_size=options.input_size
    )
    if model is None:
        print(f"using the bundled weights {predictor.model}", file=sys.stderr)
    answers = predictor.predict(images, top_k=options.top_k)
    write = _write_json if options.json else _write_csv if options.csv else _write_table
    broken = write(answers)
    if broken:
        print(f"{broken} of the images could not be read", file=sys.stderr)
    return 1 if broken else 0


def _take_model(inputs: list[str]) -> tuple[str | None, list[str]]:
    """Split the inputs into the model, None if all are images, and the images.

    Raises:
        UserError: A model without images.
    """
    from conformer_vision.runs import is_model

    first, rest = inputs[0], inputs[1:]
    # A first name that does not exist is a model, so that a mistyped run does not pass for an image.
    model = is_model(first) or (bool(rest) and (not os.path.exists(first) or os.path.isdir(first)))
    if not model:
        return None, inputs
    if not rest:
        raise UserError(f"{first} is a model; give images or folders of images after it")
    return first, rest


def _failed(prediction: Prediction) -> bool:
    """Tell whether there is no result, and print the reason to stderr."""
    if prediction.error is not None:
        print(f"skipped: {printable(prediction.error)}", file=sys.stderr)
    return prediction.error is not None


def _write_table(predictions: Iterable[Prediction]) -> int:
    from rich.markup import escape
    from rich.table import Table

    broken = 0
    table = Table("image", "prediction")
    for prediction in predictions:
        if _failed(prediction):
            broken += 1
            continue
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        answer = "  ".join(f"{label} {probability:.1%}" for label, probability in pairs)
        table.add_row(escape(printable(prediction.name)), escape(printable(answer)))
    if table.row_count:
        console().print(table)
    return broken


def _write_json(predictions: Iterable[Prediction]) -> int:
    answers = list(predictions)
    text = json.dumps([dataclasses.asdict(answer) for answer in answers], ensure_ascii=False, indent=2)
    print(printable(text))
    return sum(_failed(answer) for answer in answers)


def _write_csv(predictions: Iterable[Prediction]) -> int:
    """Write one row per class of an image; an image without a result has one row with its error."""
    broken = 0
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "error"])
    for prediction in predictions:
        name = printable(prediction.name)
        if _failed(prediction):
            broken += 1
            writer.writerow([name, "", "", "", printable(str(prediction.error))])
        for rank, label in enumerate(prediction.labels, start=1):
            writer.writerow([name, rank, label, f"{prediction.probabilities[rank - 1]:.6f}", ""])
    return broken
