"""The subcommand ``train``: a run from a recipe and options, or the rest of an interrupted one."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from conformer_vision.console import note, say, show_command
from conformer_vision.data.opening import DIGITS
from conformer_vision.errors import UserError
from conformer_vision.parsing import PROGRAM, Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.training.config import TrainConfig, add_options, config_from
from conformer_vision.training.groups import Progress
from conformer_vision.training.recipe import find_recipe, read_config, read_recipe, recipes

MOST_USED = (
    *("recipe", "resume", "data", "val_fraction", "batch_size", "workers", "seed"),
    *("model", "pretrained", "checkpoint", "input_size", "lr", "ema_decay"),
    *("epochs", "max_minutes", "patience", "mixup", "device", "precision", "output"),
)
"""The options that `--help` shows."""


def build_parser() -> Parser:
    """Make the parser of the subcommand."""
    parser = plain_parser(most_used=MOST_USED)
    add_recipe(parser)
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="Continue an interrupted run; allows only --progress and --workers beside it.",
    )
    add_options(parser)
    return parser


class _Recipe(ActionConfigFile):
    """Reads a recipe with our own reader; options that the command does not have are left out."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: Any) -> None:
        known = parser.get_defaults()
        values = {name: given for name, given in read_recipe(find_recipe(value)).items() if name in known}
        ActionConfigFile.apply_config(parser, cfg, dest, yaml.safe_dump(values))


def add_recipe(parser: ArgumentParser) -> None:
    """Add the option `--recipe`."""
    parser.add_argument(
        "--recipe",
        action=_Recipe,
        help=f"YAML file of options, or a bundled recipe: {', '.join(recipes())}. "
        "Options on the command line override it.",
    )


def option_value(arguments: list[str], name: str) -> str | None:
    """Return the value of an option in the command line, if it is there."""
    for index, argument in enumerate(arguments):
        if argument == name:
            if index + 1 == len(arguments):
                raise UserError(f"{name} needs a value")
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
    return None


def with_recipe_first(arguments: list[str]) -> list[str]:
    """Move the recipe before all other options, so that they win; without one, insert the default's."""
    given = option_value(arguments, "--recipe")
    if given is None:
        return [arguments[0], *_default_recipe(arguments), *arguments[1:]]
    at = arguments.index("--recipe") if "--recipe" in arguments else arguments.index(f"--recipe={given}")
    rest = arguments[at + 2 :] if arguments[at] == "--recipe" else arguments[at + 1 :]
    return [arguments[0], f"--recipe={given}", *arguments[1:at], *rest]


def _default_recipe(arguments: list[str]) -> list[str]:
    """Return the recipe of a command line without one; with a model or from scratch there is none."""
    names = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    after = dict(pairwise(arguments))
    if "--data" not in names or "--model" in names:
        return []
    if (names.get("--pretrained") or after.get("--pretrained", "")).lower() in ("false", "no", "off"):
        return []
    data = names["--data"] or after.get("--data")
    return ["--recipe=quick" if data == DIGITS else "--recipe=finetune"]


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Train."""
    from conformer_vision.training import run as training_run

    _finish(training_run.train(config_from(options, parser)))
    return 0


def _finish(folder: Path) -> None:
    """Write the report of a run that has ended, and say where everything is and what to do next."""
    from conformer_vision.training.processes import is_first

    if not is_first():
        return
    from conformer_vision.runs import CONFIG_FILE, REPORT_FILE, fold_folders

    config = read_config(folder / CONFIG_FILE)
    runs = fold_folders(folder) if config.data.fold == "all" else [folder]
    for run in runs:
        _write_report(run, config)
    reports = [run / REPORT_FILE for run in runs if (run / REPORT_FILE).is_file()]
    if reports:
        say(f"report: {reports[0]}" if len(runs) == 1 else f"reports: {folder / 'fold-*' / REPORT_FILE}")
    show_command("next:", PROGRAM, "predict", str(folder), "IMAGE")
    say(f"run folder: {folder}")


def _write_report(folder: Path, config: TrainConfig) -> None:
    """Write the report of a run, unless it has one that is newer than its results."""
    from conformer_vision.runs import REPORT_FILE, RESULTS_FILE

    if not config.output.report or _is_newer(folder / REPORT_FILE, folder / RESULTS_FILE):
        return
    from conformer_vision.report import write_report

    try:
        findings = write_report(folder, workers=config.data.workers, device=config.hardware.device)
        if findings.note is not None:
            note(findings.note)
    except UserError as error:  # the run is complete without it
        note(f"no report: {error}")


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and other.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def resume(folder: str, arguments: list[str]) -> int:
    """Continue the run in a folder; `arguments` is the command line without the program."""
    known = {"--resume", "--progress", "--workers"}
    for argument in arguments[1:]:
        if argument.startswith("--") and argument.partition("=")[0] not in known:
            raise UserError(
                f"{argument.partition('=')[0]} cannot be given with --resume: "
                "the run continues as its config.yaml says"
            )
    parser = plain_parser("Continue an interrupted run.")
    parser.add_argument("--resume")
    parser.add_argument("--progress", type=Progress | None)
    parser.add_argument("--workers", type=int | None)
    options = parser.parse_args(arguments[1:])
    from conformer_vision.training import run as training_run

    _finish(training_run.resume(folder, progress=options.progress, workers=options.workers))
    return 0


def stopped(interrupt: KeyboardInterrupt) -> int:
    """Say how to continue after a signal, and requeue a SLURM job; return the exit status."""
    folder, number = getattr(interrupt, "folder", None), getattr(interrupt, "signal", signal.SIGINT)
    if folder is None:
        return 128 + number
    from conformer_vision.training.interrupt import requeue, slurm_job
    from conformer_vision.training.processes import is_first

    if not is_first():
        return 128 + number
    job = slurm_job()
    if number != signal.SIGINT and job is not None and getattr(interrupt, "auto_resume", False):
        note(f"stopped; requeued job {job}" if requeue(job) else f"stopped; job {job} cannot be requeued")
    else:
        show_command("stopped; continue with:", PROGRAM, "train", "--resume", str(folder), result=False)
    return 128 + number
