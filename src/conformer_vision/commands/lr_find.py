"""The subcommand ``lr-find``: a learning rate for a recipe."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.train import add_recipe
from conformer_vision.console import say
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output
from conformer_vision.training.config import OPTIONS, add_options, config_from

WITHOUT_EFFECT = (
    *(name for name, group in OPTIONS.items() if group in ("schedule", "output")),
    *("lr", "ema_decay", "ema_warmup", "max_broken", "devices", "nodes", "sync_bn"),
)
"""Options of `train` that the test does not heed; recipes may hold them."""
MOST_USED = ("recipe", "steps", "plot", "data", "model")
"""The options that `--help` shows."""


def build_parser() -> Parser:
    """Make the parser of the subcommand: its own options, and those of train that have an effect."""
    parser = plain_parser(most_used=MOST_USED)
    add_recipe(parser)
    parser.add_argument("--steps", type=int, default=100, help="Optimizer steps of the test.")
    parser.add_argument("--plot", metavar="PNG", help="PNG file to draw the loss over the learning rate to.")
    add_options(parser, without=WITHOUT_EFFECT)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Suggest a learning rate; return the exit status."""
    if options.plot is not None:
        check_output(options.plot, "--plot")
    from conformer_vision.training.lr_find import draw_lr, find_lr

    found = find_lr(config_from(options, parser), steps=options.steps)
    say(f"suggested: --lr {found.suggestion:.2g}")
    if found.diverges_at is not None:
        say(f"the loss stops falling at {found.diverges_at:.2g}")
    if options.plot is not None:
        draw_lr(found, Path(options.plot))
        say(f"plot: {options.plot}")
    return 0
