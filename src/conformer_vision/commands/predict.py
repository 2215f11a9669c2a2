"""The subcommand ``predict``: classify images, and print every answer when it is known."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.model_and_images import add_model_and_images, split_inputs
from conformer_vision.commands.options import (
    add_arch,
    add_inference,
    add_input_size,
    add_rejecting,
    add_runtime,
)
from conformer_vision.commands.predict_set import check_engine, predict_set
from conformer_vision.console import emit, lost, note, printable, say, shorten, width
from conformer_vision.errors import UserError
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.inference import Prediction, Predictor

    Write = Callable[[Prediction], None]

_LEAST_COLUMNS = 40
_TOP_K = 3


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    add_model_and_images(parser, exports=True)
    parser.add_argument(
        "--top_k",
        type=int | None,
        default=None,
        help=f"Number of classes per image; {_TOP_K} by default, and of a model of several labels per image "
        "those that are present.",
    )
    add_inference(parser, batch_size=32)
    add_runtime(parser)
    add_input_size(parser)
    add_arch(parser)
    add_rejecting(parser)
    parser.add_argument("--json", action="store_true", help="Print a JSON list.")
    parser.add_argument("--jsonl", action="store_true", help="Print one JSON object per line.")
    parser.add_argument("--csv", action="store_true", help="Print CSV with one row per class of an image.")
    parser.add_argument(
        "--page",
        metavar="FILE.html",
        type=str | None,
        default=None,
        help="Also write a page: the unsure images first, with heat maps.",
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="What classifies: this process, or a Ray cluster for large sets (docs/scaling.md).",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=str | None,
        default=None,
        help="Of --engine ray: where its parquet files go; the same command goes on where it was stopped.",
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="Of --engine ray: processes, by default one for each GPU, or else for each CPU.",
    )
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    formats = [name for name in ("json", "jsonl", "csv") if options[name]]
    if len(formats) > 1:
        raise UserError(f"--{formats[0]} and --{formats[1]} exclude each other; give one of them")
    check_engine(options)
    from conformer_vision.inference import Predictor
    from conformer_vision.runtime.inputs import named_images

    model, inputs = split_inputs(options.model, options.inputs)
    if options.page:
        check_output(options.page, "--page", inputs=(model, *inputs))
    images = [image.name for image in named_images(inputs)] if options.engine == "local" else []
    predictor_of = partial(
        Predictor,
        device=options.device,
        batch_size=options.batch_size,
        input_size=options.input_size,
        arch=options.arch,
        reject=not options.no_reject,
        coverage=options.coverage,
        conformal=options.conformal,
        tta=options.tta,
        runtime=options.runtime,
        precision=options.precision,
    )
    predictor = predictor_of(model)
    top_k = options.top_k if options.top_k is not None or predictor.multilabel else _TOP_K
    if model is None:
        note(f"using the bundled weights {predictor.model}")
    for line in predictor.notes:
        note(line)
    if options.engine == "ray":
        return predict_set(predictor_of, predictor, inputs, options, top_k=top_k)
    predictions = predictor.predict(images, top_k=top_k)
    columns = width() if sys.stdout.isatty() else None
    if formats:
        writer = {"json": _json_list, "jsonl": _json_lines, "csv": _csv}[formats[0]]()
    else:
        writer = _plain_lines() if columns is None else _aligned_lines(images, max(columns, _LEAST_COLUMNS))
    kept: list[Prediction] = []
    with writer as write:
        status = _print(_keeping(predictions, kept if options.page else None), write, number=len(images))
    if options.page:
        _write_page(options.page, kept, predictor, options)
    return status


def _keeping(predictions: Iterable[Prediction], kept: list[Prediction] | None) -> Iterator[Prediction]:
    for prediction in predictions:
        if kept is not None:
            kept.append(prediction)
        yield prediction


def _write_page(path: str, predictions: list[Prediction], predictor: Predictor, options: Namespace) -> None:
    """Write the page, for the images that were done; without heat maps of an export or an ensemble."""
    from conformer_vision.explain import Explainer
    from conformer_vision.report.answers import write_answers

    explainer = None
    if predictor.explainable:
        size = options.input_size
        explainer = Explainer(predictor.model, device=options.device, input_size=size, arch=options.arch)
    write_answers(path, predictions, model=predictor.model, explainer=explainer)
    note(f"page: {path}")


def _print(predictions: Iterable[Prediction], write: Write, *, number: int) -> int:
    """Print the answers as they come, until the reader has gone, Ctrl-C or SIGTERM; return the status."""
    done = broken = unsure = 0
    try:
        for prediction in predictions:
            if prediction.error is not None:
                broken += 1
                note(f"skipped: {prediction.error}")
            with _uninterrupted():
                write(prediction)
                done += 1
                unsure += prediction.unsure is not None
            if lost():
                break
    except KeyboardInterrupt as interrupt:
        note(f"stopped after {done:,} of {number:,} images")
        return 128 + getattr(interrupt, "signal", signal.SIGINT)
    if unsure:
        note(f"unsure: {unsure:,} of {done - broken:,} answers (docs/unsure.md)")
    if broken:
        note(f"{broken} of the images could not be read")
    return 1 if broken else 0


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off to the end of the block, so that no answer is printed in part."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _answers(prediction: Prediction) -> list[str]:
    """Return what is said of an image: whether it is unsure or has no class, its classes, and their set."""
    pairs = zip(prediction.labels, prediction.probabilities, strict=True)
    answers = [f"{label} {probability:.1%}" for label, probability in pairs]
    if prediction.present == ():
        answers = ["no class", *answers]
    if prediction.unsure is not None:
        answers = [*f"unsure: {prediction.unsure}".split("; "), *answers]
    if prediction.conformal_set is not None:
        first, *others = prediction.conformal_set
        answers += [f"set of {len(prediction.conformal_set)}: {first}", *others]
    return answers


@contextmanager
def _plain_lines() -> Iterator[Write]:
    def write(prediction: Prediction) -> None:
        if prediction.error is None:
            say(f"{prediction.name}: {', '.join(_answers(prediction))}")

    yield write


@contextmanager
def _aligned_lines(names: Sequence[str], columns: int) -> Iterator[Write]:
    """Print two columns that fit a terminal; answers without room on the first line go below each other."""
    from rich.cells import cell_len, set_cell_size

    first = min(max(cell_len(printable(name)) for name in names), columns // 2 - 2)
    rest = columns - first - 2

    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            return
        lines: list[str] = []
        for answer in map(printable, _answers(prediction)):
            answer = answer if cell_len(answer) <= rest else shorten(answer, rest)
            if lines and cell_len(lines[-1]) + 2 + cell_len(answer) <= rest:
                lines[-1] += f"  {answer}"
            else:
                lines.append(answer)
        heads = [shorten(printable(prediction.name), first), *[""] * (len(lines) - 1)]
        for head, line in zip(heads, lines, strict=True):
            say(f"{set_cell_size(head, first)}  {line}")

    yield write


@contextmanager
def _json_list() -> Iterator[Write]:
    separator = ""

    def write(prediction: Prediction) -> None:
        nonlocal separator
        text = json.dumps(dataclasses.asdict(prediction), ensure_ascii=False, indent=2)
        emit(f"{separator}\n{textwrap.indent(text, '  ')}")
        separator = ","

    emit("[")
    try:
        yield write
    finally:  # it stays a list after Ctrl-C and SIGTERM
        emit("\n]\n")


@contextmanager
def _json_lines() -> Iterator[Write]:
    yield lambda prediction: emit(f"{json.dumps(dataclasses.asdict(prediction), ensure_ascii=False)}\n")


@contextmanager
def _csv() -> Iterator[Write]:
    """Print one row per class of an image; one without a result, or without a class, has one row too."""
    writer = csv.writer(SimpleNamespace(write=emit), lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "error", "unsure", "in_set", "present"])

    def write(prediction: Prediction) -> None:
        if prediction.error is not None:
            writer.writerow([prediction.name, "", "", "", prediction.error, "", "", ""])
        elif not prediction.labels:
            writer.writerow([prediction.name, "", "", "", "", "", "", "no"])
        members, unsure = prediction.conformal_set, prediction.unsure or ""
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        for rank, (label, probability) in enumerate(pairs, start=1):
            chosen = [
                "" if classes is None else "yes" if label in classes else "no"
                for classes in (members, prediction.present)
            ]
            writer.writerow([prediction.name, rank, label, f"{probability:.6f}", "", unsure, *chosen])

    yield write
