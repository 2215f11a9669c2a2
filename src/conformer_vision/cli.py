"""The command ``conformer-vision``: parsing, printing, exit statuses. Other modules do the work.

Exit statuses: 0 done, 1 done but for some pictures, 2 a mistake in what the user gave, 130 Ctrl-C.
Nothing is imported at the top that takes long: ``--help`` waits for neither torch nor timm.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from conformer_vision import __version__
from conformer_vision.errors import UserError
from conformer_vision.parsing import PROGRAM, build_parser, nearest
from conformer_vision.training.config import Progress, TrainConfig
from conformer_vision.training.recipe import config_from, read_recipe

if TYPE_CHECKING:
    from conformer_vision.inference import Evaluation, Prediction

CONFUSION_FILE = "confusion_matrix.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except UserError as error:
        print(f"error: {_printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `| head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        folder = getattr(interrupt, "folder", None)
        if folder is not None:
            print(f"stopped; continue with: {PROGRAM} train --resume {folder}", file=sys.stderr)
        return 130


def _run(arguments: list[str]) -> int:
    parser, subparsers = build_parsers()
    arguments = [_with_underscores(argument) for argument in arguments]
    if arguments[:1] == ["train"]:
        if folder := _option(arguments, "--resume"):
            return _resume(folder, arguments)
        arguments = _with_recipe_paths(arguments)
    try:
        parsed = parser.parse_args(arguments)
    except RecursionError as error:
        raise UserError("a value is nested too deep") from error
    if parsed.subcommand is None:
        parser.print_help()
        return 0
    options = parsed[parsed.subcommand]
    if parsed.subcommand == "train":
        return _train(config_from(options, subparsers["train"]))
    commands = {"evaluate": _evaluate, "predict": _predict, "models": _models}
    return commands[parsed.subcommand](options)


# ---- parsing ---------------------------------------------------------------------------------------


def build_parsers() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser, and those of its subcommands by name."""
    parser = build_parser("Train, evaluate and use Conformer on your own pictures.", prog=PROGRAM)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subcommands = parser.add_subcommands(required=False)
    subparsers = {
        "train": _train_parser(),
        "evaluate": _evaluate_parser(),
        "predict": _predict_parser(),
        "models": _models_parser(),
    }
    for name, subparser in subparsers.items():
        subcommands.add_subcommand(name, subparser, help=str(subparser.description))
    return parser, subparsers


def _train_parser() -> ArgumentParser:
    parser = build_parser("Train a classifier and write its run folder.")
    parser.add_argument(
        "--recipe",
        action=ActionConfigFile,
        help=f"YAML file of the options below, or one of the package's by name: {', '.join(recipes())}; "
        "options beside it win.",
    )
    parser.add_argument(
        "--resume", metavar="RUN", help="Continue an interrupted run; only --progress may go with it."
    )
    parser.add_class_arguments(TrainConfig)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = build_parser("Measure a trained model on labelled pictures.")
    parser.add_argument("run", help="Run folder or .safetensors file.")
    parser.add_argument("--data", required=True, help="Pictures, as train takes them.")
    parser.add_argument("--split", default="val", choices=["val", "train", "all"], help="Part of the data.")
    parser.add_argument("--val_fraction", type=float | None, help="Share held out; else the run's own.")
    parser.add_argument("--seed", type=int | None, help="Seed of the split; else the run's own.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures per forward pass.")
    parser.add_argument("--workers", type=int, default=0, help="Processes that read pictures.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another of torch's.")
    parser.add_argument(
        "--confusion_matrix",
        metavar="PNG",
        help=f"Where to draw the confusion matrix; {CONFUSION_FILE} in a run folder where not given.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of a table.")
    return parser


def _predict_parser() -> ArgumentParser:
    parser = build_parser("Classify pictures with a trained model.")
    parser.add_argument("run", help="Run folder or .safetensors file.")
    parser.add_argument("inputs", nargs="+", metavar="PICTURE_OR_FOLDER", help="Pictures or folders of them.")
    parser.add_argument("--top_k", type=int, default=3, help="Classes per picture.")
    parser.add_argument("--batch_size", type=int, default=32, help="Pictures per forward pass.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another of torch's.")
    parser.add_argument("--json", action="store_true", help="Print a JSON list instead of a table.")
    parser.add_argument("--csv", action="store_true", help="Print CSV instead of a table.")
    return parser


def _models_parser() -> ArgumentParser:
    parser = build_parser("List the Conformers by name, size and cost.")
    parser.add_argument("--json", action="store_true", help="Print a JSON list instead of a table.")
    return parser


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("conformer_vision") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def _with_underscores(argument: str) -> str:
    """``--batch-size=8`` as ``--batch_size=8``: both spellings are taken."""
    name, equals, value = argument.partition("=")
    return argument if not name.startswith("--") else "--" + name[2:].replace("-", "_") + equals + value


def _option(arguments: list[str], name: str) -> str | None:
    """The value of an option in the command line, if it is there."""
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 == len(arguments):
                raise UserError(f"{name} needs a value")
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def _with_recipe_paths(arguments: list[str]) -> list[str]:
    """The arguments with the recipe's path for its name; the recipe's keys are checked on the way."""
    given = _option(arguments, "--recipe")
    if given is None:
        return arguments
    path = Path(given)
    if not path.is_file():
        if given not in recipes():
            hint = nearest(given, recipes()) or f"; give a YAML file, or one of {', '.join(recipes())}"
            raise UserError(f"recipe {given!r} is unknown{hint}")
        path = Path(str(resources.files("conformer_vision") / "recipes" / f"{given}.yaml"))
    read_recipe(path)
    at = arguments.index("--recipe") if "--recipe" in arguments else arguments.index(f"--recipe={given}")
    rest = arguments[at + 2 :] if arguments[at] == "--recipe" else arguments[at + 1 :]
    return [arguments[0], f"--recipe={path}", *arguments[1:at], *rest]  # first, so that all others win


# ---- commands --------------------------------------------------------------------------------------


def _train(config: TrainConfig) -> int:
    from conformer_vision.training import train

    print(f"run folder: {train(config)}")
    return 0


def _resume(folder: str, arguments: list[str]) -> int:
    known = {"--resume", "--progress"}
    for argument in arguments[1:]:
        if argument.startswith("--") and argument.partition("=")[0] not in known:
            raise UserError(
                f"{argument.partition('=')[0]} cannot be given with --resume: "
                "the run goes on as its config.yaml says"
            )
    parser = build_parser("Continue an interrupted run.")
    parser.add_argument("--resume")
    parser.add_argument("--progress", type=Progress | None)
    options = parser.parse_args(arguments[1:])
    from conformer_vision.training.run import resume

    print(f"run folder: {resume(folder, progress=options.progress)}")
    return 0


def _evaluate(options: Namespace) -> int:
    from conformer_vision.inference import evaluate

    path = Path(options.run, CONFUSION_FILE) if Path(options.run).is_dir() else None
    if options.confusion_matrix is not None:
        path = Path(options.confusion_matrix)
    evaluation = evaluate(
        options.run,
        options.data,
        split=options.split,
        batch_size=options.batch_size,
        workers=options.workers,
        device=options.device,
        val_fraction=options.val_fraction,
        seed=options.seed,
        confusion_matrix=path,
    )
    if options.json:
        print(evaluation.to_json())
    else:
        _print_evaluation(evaluation)
        if path is not None:
            print(f"confusion matrix: {path}")
    return 0


def _predict(options: Namespace) -> int:
    if options.json and options.csv:
        raise UserError("--json and --csv are two formats of one output; give one of them")
    from conformer_vision.inference import Predictor

    predictor = Predictor(options.run, device=options.device, batch_size=options.batch_size)
    answers = predictor.predict(options.inputs, top_k=options.top_k)
    write = _write_json if options.json else _write_csv if options.csv else _write_table
    broken = write(answers)
    if broken:
        print(f"{broken} of the pictures could not be read", file=sys.stderr)
    return 1 if broken else 0


def _models(options: Namespace) -> int:
    from conformer_vision.models.variants import describe_variants

    rows = describe_variants()
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    from rich.table import Table

    table = Table(title="Conformers (parameters with 1,000 classes)")
    for name in ("name", "picture", "tokens", "parameters", "GMACs"):
        table.add_column(name, justify="left" if name == "name" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['input_size']} px",
            str(row["tokens"]),
            f"{row['parameters'] / 1e6:.1f} M",
            f"{row['gmacs']:.2f}",
        )
    _console().print(table)
    return 0


# ---- output ----------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    # Off a terminal rich would wrap at 80 columns, and cut paths in two.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _print_evaluation(evaluation: Evaluation) -> None:
    from rich.table import Table

    table = Table(title=f"{evaluation.samples:,} pictures, {evaluation.images_per_second:,.0f} per second")
    for name in ("head", "top-1", "top-5", "loss"):
        table.add_column(name, justify="left" if name == "head" else "right")
    for head, top1 in evaluation.top1.items():
        top5 = "" if evaluation.top5 is None else f"{evaluation.top5[head]:.2%}"
        table.add_row(head, f"{top1:.2%}", top5, f"{evaluation.loss[head]:.4f}")
    _console().print(table)


def _failed(prediction: Prediction) -> bool:
    """Whether there is no answer; the reason goes to stderr."""
    if prediction.error is not None:
        print(f"skipped: {_printable(prediction.error)}", file=sys.stderr)
    return prediction.error is not None


def _write_table(predictions: Iterable[Prediction]) -> int:
    from rich.markup import escape
    from rich.table import Table

    broken = 0
    table = Table("picture", "prediction")
    for prediction in predictions:
        if _failed(prediction):
            broken += 1
            continue
        pairs = zip(prediction.labels, prediction.probabilities, strict=True)
        answer = "  ".join(f"{label} {probability:.1%}" for label, probability in pairs)
        table.add_row(escape(_printable(prediction.name)), escape(_printable(answer)))
    if table.row_count:
        _console().print(table)
    return broken


def _write_json(predictions: Iterable[Prediction]) -> int:
    answers = list(predictions)
    text = json.dumps([dataclasses.asdict(answer) for answer in answers], ensure_ascii=False, indent=2)
    print(_printable(text))
    return sum(_failed(answer) for answer in answers)


def _write_csv(predictions: Iterable[Prediction]) -> int:
    """One row per class of a picture; a picture without an answer has one row with its error."""
    broken = 0
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "rank", "label", "probability", "error"])
    for prediction in predictions:
        name = _printable(prediction.name)
        if _failed(prediction):
            broken += 1
            writer.writerow([name, "", "", "", _printable(str(prediction.error))])
        for rank, label in enumerate(prediction.labels, start=1):
            writer.writerow([name, rank, label, f"{prediction.probabilities[rank - 1]:.6f}", ""])
    return broken


def _printable(text: str) -> str:
    """The text with what no terminal can show escaped: file names need not be UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
