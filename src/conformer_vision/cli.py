"""The command ``conformer-vision``: subcommands, errors in one line, exit statuses.

Exit statuses: 0 done, 1 done except for some images, 2 usage error, 130 Ctrl-C, 143 SIGTERM.
Nothing slow is imported at the top: ``--help`` waits for neither torch nor timm.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Collection, Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn, Protocol, cast

from jsonargparse import ArgumentParser, Namespace

from conformer_vision import __version__
from conformer_vision.console import lost, note, open_streams, warnings_noted
from conformer_vision.environment import prepare_process
from conformer_vision.errors import Terminated, UserError, command_line_words, machine_error
from conformer_vision.extras import naming_extras
from conformer_vision.parsing import PROGRAM, Parser, build_parser


class _Command(Protocol):
    """What every module of `commands` offers."""

    def build_parser(self) -> Parser: ...

    def run(self, options: Namespace, parser: ArgumentParser) -> int: ...


SUBCOMMANDS = {
    "check": "Check labelled images before training on them.",
    "lr-find": "Suggest a learning rate from a few steps with a rising one.",
    "train": "Train a classifier and write its run folder.",
    "report": "Write a run's report.html again, and calibrate its model.",
    "evaluate": "Evaluate a trained model on labelled images.",
    "compare": "Compare two trained models on images that neither was trained on.",
    "labels": "Find labels that are probably wrong, from the answers of a run of all folds.",
    "predict": "Classify images with a trained model.",
    "serve": "Answer over HTTP with a trained model.",
    "explain": "Show where a model looks: heat maps of both branches, as PNG and on a page.",
    "localize": "Find where classes are: boxes and masks as COCO JSON and PNG images.",
    "export": "Write a trained model in another format and check the file against the model.",
    "benchmark": "Compare the forms of a model: speed, size, and difference from the model.",
    "models": "List the Conformers by name, size and cost.",
}
"""What each does, in the order of ``--help``; each is a module of `commands` of its name, ``_`` for ``-``."""
_TAKING_RECIPES = ("train", "lr-find")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a process of its own
        open_streams()
        prepare_process()
        end_at_sigterm()
    with warnings_noted():
        status = _status(arguments)
    if (error := lost()) is None or isinstance(error, BrokenPipeError) or arguments[:1] == ["train"]:
        return status  # the reader has enough; a run is complete in its folder
    note(f"error: cannot write the output: {error.strerror or error}")
    return status or 2


def end_at_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, end)


def _status(arguments: list[str]) -> int:
    """Run the command line; its errors become lines and exit statuses."""
    try:
        with naming_extras(), command_line_words():
            return _run(arguments)
    except UserError as error:
        note(f"error: {error}")
        return 2
    except KeyboardInterrupt as interrupt:
        from conformer_vision.commands.train import stopped

        return stopped(interrupt)
    except Exception as error:
        if (line := machine_error(error)) is None:
            raise
        note(f"error: {line}")
        return 2


def _run(arguments: list[str]) -> int:
    try:
        os.getcwd()
    except OSError as error:  # torch would end the process when it is loaded
        raise UserError("the working folder has been removed; change to another one (cd)") from error
    parser, subparsers = build_parsers(arguments[:1])
    arguments = [_with_underscores(argument) for argument in arguments]
    if arguments[:1] and arguments[0] in _TAKING_RECIPES:
        from conformer_vision.commands import train

        if arguments[0] == "train" and (folder := train.option_value(arguments, "--resume")):
            return train.resume(folder, arguments)
    if arguments[:1] and (subparser := subparsers.get(arguments[0])):
        subparser.given = arguments = subparser.complete(arguments)
    if arguments[:1] and arguments[0] in _TAKING_RECIPES:
        arguments = train.with_recipe_first(arguments)
    try:
        parsed = parser.parse_args(arguments)
    except RecursionError as error:
        raise UserError("a value is nested too deeply") from error
    name = parsed.subcommand
    if name is None:
        parser.print_help()
        return 0
    return _command(name).run(parsed[name], subparsers[name])


def build_parsers(names: Collection[str] = tuple(SUBCOMMANDS)) -> tuple[Parser, dict[str, Parser]]:
    """Build the parser, and those of all subcommands by name.

    Args:
        names: Subcommands whose options are needed. The parsers of the others have none, because their
            modules take time to import, and train's options a quarter of a second to build.
    """
    parser = build_parser("Train, evaluate and use Conformer on your own images.", prog=PROGRAM)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subcommands = parser.add_subcommands(required=False)
    subparsers = {
        name: _command(name).build_parser() if name in names else build_parser() for name in SUBCOMMANDS
    }
    for name, subparser in subparsers.items():
        subparser.description = SUBCOMMANDS[name]
        subcommands.add_subcommand(name, subparser, help=SUBCOMMANDS[name])
    parser.commands = subparsers
    return parser, subparsers


def _command(name: str) -> _Command:
    return cast(_Command, import_module(f"conformer_vision.commands.{name.replace('-', '_')}"))


def _with_underscores(argument: str) -> str:
    """Turn ``--batch-size=8`` into ``--batch_size=8``: both spellings are accepted."""
    name, equals, value = argument.partition("=")
    return argument if not name.startswith("--") else "--" + name[2:].replace("-", "_") + equals + value
