"""Label errors as a table, as a list for training to leave out, and as a page with thumbnails."""

from __future__ import annotations

from collections import Counter
from datetime import date
from pathlib import Path

from conformer_vision import pages
from conformer_vision.data import BrokenImageError, ImageSource
from conformer_vision.data.csv_file import write_csv
from conformer_vision.data.exclude import write_exclusions
from conformer_vision.inference.label_errors import LabelError, LabelErrors
from conformer_vision.inference.predictions import stored_text
from conformer_vision.report.formats import FILTERS

COLUMNS = ("image", "label", "suggested", "score")
MOST_SHOWN = 500
"""Images on the page, the surest errors: each takes about 10 kB."""
MOST_PAIRS = 10
EDGE = 192
"""Longest edge of a thumbnail, in pixels."""


class ImagesByName:
    """The images of a source by the names that out-of-fold answers keep; without a source there are none."""

    def __init__(self, source: ImageSource | None) -> None:
        self._source = source
        numbers = range(0 if source is None else len(source))
        self._numbers = {} if source is None else {stored_text(source.name(n)): n for n in numbers}

    def name(self, stored: str) -> str:
        """Return the name as the source has it, which need not be UTF-8."""
        number = self._numbers.get(stored)
        return stored if number is None or self._source is None else self._source.name(number)

    def thumbnail(self, stored: str) -> pages.Thumbnail:
        """Return a small copy, without an image where it cannot be read."""
        number = self._numbers.get(stored)
        if number is None or self._source is None:
            return pages.Thumbnail(stored, None)
        try:
            return pages.Thumbnail(stored, pages.data_uri(self._source.image(number), edge=EDGE))
        except BrokenImageError:  # readable when the folds were trained
            return pages.Thumbnail(stored, None)


def write_table(path: str | Path, errors: list[LabelError], images: ImagesByName) -> None:
    """Write the errors as CSV, the surest first.

    Raises:
        UserError: the file cannot be written.
    """
    rows = ((images.name(each.image), each.label, each.suggested, f"{each.score:.4f}") for each in errors)
    write_csv(path, COLUMNS, rows)


def write_fix(path: str | Path, errors: list[LabelError], images: ImagesByName) -> None:
    """Write the exclusion list that leaves the images out of training.

    Raises:
        UserError: the file cannot be written.
    """
    write_exclusions(
        path,
        ((images.name(e.image), f"labelled {e.label}, looks like {e.suggested}") for e in errors),
    )


def write_page(path: str | Path, found: LabelErrors, images: ImagesByName, *, run: str) -> None:
    """Write the page: how many labels are wrong, which classes are mixed up, and the images.

    Raises:
        UserError: the file cannot be written.
    """
    shown = found.errors[:MOST_SHOWN]
    pairs = Counter((each.label, each.suggested) for each in found.errors)
    context = {
        "found": found,
        "run": run,
        "cards": [(each, images.thumbnail(each.image)) for each in shown],
        "pairs": [
            (f"{label}, looks like {suggested}", count)
            for (label, suggested), count in pairs.most_common(MOST_PAIRS)
        ],
        "today": date.today(),
        "more_pairs": max(len(pairs) - MOST_PAIRS, 0),
    }
    pages.write_page(path, pages.render(__package__, "label_errors.html.j2", context, filters=FILTERS))
