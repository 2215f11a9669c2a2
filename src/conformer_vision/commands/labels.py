"""The subcommand ``labels``: labels that are probably wrong, found by the folds of a cross-validation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.console import note, say, show_table
from conformer_vision.errors import UserError
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.runs import check_output

if TYPE_CHECKING:
    from conformer_vision.data import ImageSource
    from conformer_vision.inference.label_errors import LabelErrors

_MOST_PAIRS = 5
_TABLE, _PAGE = "label_errors.csv", "label_errors.html"


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument("run", help="Run folder, trained with --folds N --fold all.")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=str | None,
        help=f"Folder for {_TABLE} and the page {_PAGE}; the run folder by default.",
    )
    parser.add_argument(
        "--fix",
        metavar="CSV",
        type=str | None,
        help="Write a CSV list of these images, which train --exclude leaves out.",
    )
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Find the errors; the status is 1 if there are any."""
    if options.fix is not None:
        check_output(options.fix, "fix")
    from conformer_vision.files import make_folder
    from conformer_vision.inference.label_errors import find_label_errors
    from conformer_vision.report.label_errors import ImagesByName, write_fix, write_page, write_table

    folder = Path(options.run)
    found = find_label_errors(folder)
    _print(found)
    images = ImagesByName(_source(folder))
    out = folder if options.out is None else make_folder(options.out)
    if options.fix is not None:
        write_fix(options.fix, found.errors, images)
        say(f"exclusion list: {options.fix}")
    write_table(out / _TABLE, found.errors, images)
    say(f"table: {out / _TABLE}")
    write_page(out / _PAGE, found, images, run=str(folder))
    say(f"page: {out / _PAGE}")
    return 1 if found.errors else 0


def _print(found: LabelErrors) -> None:
    say(f"{len(found.errors):,} of {found.images:,} labels may be wrong; {found.estimated:.1%} by estimate")
    pairs = Counter((each.label, each.suggested) for each in found.errors)
    if pairs:
        rows = [
            (label, suggested, f"{count:,}") for (label, suggested), count in pairs.most_common(_MOST_PAIRS)
        ]
        show_table(("label", "looks like", "images"), rows, left=2)


def _source(folder: Path) -> ImageSource | None:
    """Open the images of the run, for their thumbnails; None if they are gone."""
    from conformer_vision.data import open_images, require_source
    from conformer_vision.inference.labelled import read_run_data

    trained_on = read_run_data(folder)
    try:
        if trained_on.data is None:
            raise UserError("the run names no data")
        images = open_images(trained_on.data, "all", trained_on.splitting, data_dir=trained_on.data_dir)
        return require_source(images, name=trained_on.data)
    except UserError as error:
        note(f"the page has no thumbnails: {error}")
        return None
