"""Options that several subcommands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

if TYPE_CHECKING:
    from conformer_vision.data import Splitting

_SPLITTING = ("val_fraction", "seed", "folds", "fold")


def add_splitting(parser: ArgumentParser, *, of_run: bool) -> None:
    """Add the options that say how a set is split, and where named sets are.

    Args:
        parser: gets the options.
        of_run: whether an option left out takes the value of a run, instead of training's default.
    """
    otherwise = "; the run's own by default" if of_run else ""
    parser.add_argument(
        "--val_fraction",
        type=float | None if of_run else float,
        default=None if of_run else 0.1,
        help=f"Share of each class held out if the set has no split of its own{otherwise}.",
    )
    parser.add_argument(
        "--seed",
        type=int | None if of_run else int,
        default=None if of_run else 0,
        help=f"Seed of the split{otherwise}.",
    )
    parser.add_argument("--folds", type=int | None, help=f"Number of folds to split into{otherwise}.")
    parser.add_argument(
        "--fold",
        type=int | None if of_run else int,
        default=None if of_run else 0,
        help=f"Fold held out, counted from 0{otherwise}.",
    )
    parser.add_argument(
        "--data_dir", metavar="FOLDER", type=str | None, help=f"Where named sets are stored{otherwise}."
    )


def splitting_of(options: Namespace, *, default: Splitting | None = None) -> Splitting:
    """Return the splitting that the options of `add_splitting` give.

    Args:
        options: what was parsed.
        default: values of the options left out, such as those of a run.

    Raises:
        UserError: an invalid value.
    """
    from dataclasses import replace

    from conformer_vision.data import Splitting

    given = {name: options[name] for name in _SPLITTING if options[name] is not None}
    return replace(default or Splitting(), **given)
