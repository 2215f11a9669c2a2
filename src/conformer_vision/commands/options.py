"""Options that several subcommands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.inference.conversion.choice import RuntimeName
from conformer_vision.inference.conversion.formats import Precision

if TYPE_CHECKING:
    from conformer_vision.data import Splitting
    from conformer_vision.explain.methods import HeatMapOptions

_SPLITTING = ("val_fraction", "seed", "folds", "fold", "group", "label_column", "label_separator")


def add_inference(parser: ArgumentParser, *, batch_size: int | None = None, workers: bool = False) -> None:
    """Add the options that say where and how a model runs.

    Args:
        parser: Gets the options.
        batch_size: Default of ``--batch_size``; None leaves the option out.
        workers: Whether to add ``--workers``.
    """
    if batch_size is not None:
        parser.add_argument("--batch_size", type=int, default=batch_size, help="Images per forward pass.")
    if workers:
        parser.add_argument("--workers", type=int, default=0, help="Processes that read images.")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another torch device.")


def add_runtime(parser: ArgumentParser) -> None:
    """Add the options that say what computes a model, and how precisely."""
    parser.add_argument(
        "--runtime",
        default="auto",
        choices=get_args(RuntimeName),
        help="What computes the model; auto takes the fastest exact one where it pays.",
    )
    parser.add_argument(
        "--precision",
        default=None,
        choices=get_args(Precision),
        help="Of the arithmetic; float32 by default, and an exported file's own.",
    )


def add_input_size(parser: ArgumentParser) -> None:
    """Add the option for another input size than the model's own."""
    parser.add_argument(
        "--input_size",
        type=int | tuple[int, int] | None,
        help="Pixels of the input; the model's by default.",
    )


def add_arch(parser: ArgumentParser) -> None:
    """Add the option that names the architecture of a checkpoint of another program."""
    parser.add_argument(
        "--arch",
        metavar="NAME",
        type=str | None,
        help="Model of timm that a checkpoint is of, if its content does not tell.",
    )


def add_unsure(parser: ArgumentParser) -> None:
    """Add the options that say when an answer is unsure, and how often each image is looked at."""
    parser.add_argument(
        "--coverage",
        type=float | None,
        help="Share of images like the validation images that gets a sure answer; the model's by default.",
    )
    parser.add_argument(
        "--conformal",
        metavar="RATE",
        type=float | None,
        help="Also give sets of classes, of which at most this share lacks the true class.",
    )
    parser.add_argument(
        "--tta",
        metavar="VIEWS",
        type=str | None,
        help="Average over views of the image: flip, scales, flip+scales or scales=0.8,1,1.25.",
    )


def add_rejecting(parser: ArgumentParser) -> None:
    """Add the options of `add_unsure`, and the one that leaves unsure answers unmarked."""
    add_unsure(parser)
    parser.add_argument(
        "--no_reject", action="store_true", help="Do not say which answers are unsure (docs/unsure.md)."
    )


def add_heat_maps(parser: ArgumentParser) -> None:
    """Add the options of heat maps that explain and localize share."""
    parser.add_argument(
        "--scales",
        nargs="+",
        type=float,
        default=[1.0],
        help="Sizes to average over, as multiples of the input's.",
    )
    parser.add_argument("--flip", action="store_true", help="Average with the mirrored image.")
    parser.add_argument(
        "--blocks",
        nargs="+",
        type=int,
        default=None,
        help="Blocks, from 1, whose attention token-cam and attention-cam take; all by default.",
    )
    parser.add_argument(
        "--output_stride",
        type=int | None,
        default=None,
        help="16 or 8 for a finer feature map from the same weights.",
    )


def heat_map_options(options: Namespace, *, method: str) -> HeatMapOptions:
    """Return how heat maps are made, as the options of `add_heat_maps` say."""
    from conformer_vision.explain.methods import HeatMapOptions

    return HeatMapOptions.of(method, scales=options.scales, flip=options.flip, blocks=options.blocks)


def add_splitting(parser: ArgumentParser, *, of_run: bool) -> None:
    """Add the options that say how a set is split, and where named sets are.

    Args:
        parser: Gets the options.
        of_run: Whether an option left out takes the value of a run, instead of training's default.
    """
    otherwise = "; the run's own by default" if of_run else ""
    none = f"{otherwise}, '' for none" if of_run else ""
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
        "--group",
        metavar="COLUMN|REGEX",
        type=str | None,
        help="Column, or regular expression on the image's path, that says which images belong together: a "
        f"patient, video or site{none}.",
    )
    parser.add_argument(
        "--label_column",
        metavar="COLUMN",
        type=str | None,
        help="Column of labels of a table, if it has no name that is known; several, with commas between "
        f"them, are columns of 0 and 1, one per class{none}.",
    )
    parser.add_argument(
        "--label_separator",
        metavar="TEXT",
        type=str | None,
        help=f"What stands between several labels in a text, as in 'cat|dog'{none}.",
    )
    parser.add_argument(
        "--data_dir", metavar="FOLDER", type=str | None, help=f"Where named sets are stored{otherwise}."
    )


def splitting_of(options: Namespace, *, default: Splitting | None = None) -> Splitting:
    """Return the splitting that the options of `add_splitting` give.

    Args:
        options: What was parsed.
        default: Values of the options left out, such as those of a run.

    Raises:
        UserError: An invalid value.
    """
    from dataclasses import replace

    from conformer_vision.data import Splitting

    given = {name: options[name] for name in _SPLITTING if options[name] is not None}
    if default is not None:  # the run's columns are not those of other data
        if given.get("group") == "":
            given |= {"group": None, "recorded": None}
        given |= {name: None for name in ("label_column", "label_separator") if given.get(name) == ""}
    return replace(default or Splitting(), **given)
