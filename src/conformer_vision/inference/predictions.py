"""The answers to every image as a table: CSV for a spreadsheet, parquet for a program."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from conformer_vision.data.base import classes_of
from conformer_vision.errors import UserError
from conformer_vision.files import atomic_path
from conformer_vision.inference.answers import AnswersOf
from conformer_vision.inference.heads import Array
from conformer_vision.runtime.base import FUSED

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?", re.IGNORECASE)

_WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".csv": lambda table, path: csv.write_csv(_for_spreadsheets(table), path),
    ".parquet": lambda table, path: parquet.write_table(table, path),
}
"""Suffix of a file -> what writes it."""


def check_predictions_file(path: str | Path) -> None:
    """Refuse a file whose suffix names no format that is written.

    Raises:
        UserError: It is neither CSV nor parquet.
    """
    if Path(path).suffix.lower() not in _WRITERS:
        raise UserError(f"predictions {path}: give a name that ends in {' or '.join(_WRITERS)}")


def save_predictions(
    answers: AnswersOf[Any],
    classes: Sequence[str],
    path: str | Path,
    *,
    folds: Sequence[int] | None = None,
) -> None:
    """Write one row per image: its name, truth, answer, and the probability of every class by every head.

    The columns are ``image``, ``group`` (where there are groups), ``truth``, ``answer``, ``correct``,
    ``error``, and one for each head and class, such as ``fused:cat``. An image that could not be read has its
    error and no answer; such rows are the last. Of several labels per image, truth and answer have a ``|``
    between them, and an answer is correct if it names the same classes as the truth. In CSV, text that a
    spreadsheet would run as a formula has an apostrophe in front.

    Args:
        answers: Of all images, with their logits.
        classes: Names of the model's classes.
        path: A file that ends in ``.csv`` or ``.parquet``; it is written whole or not at all.
        folds: The fold that answered each image, those that could not be read last; a column ``fold``.

    Raises:
        UserError: Another suffix, answers of which not all logits were kept, or a file that cannot be
            written.
    """
    check_predictions_file(path)
    if not answers.whole:
        raise UserError(
            f"predictions {path}: the probabilities of {len(answers.labels):,} images were not all kept; "
            "evaluate with keep_all"
        )
    table = _table(answers, classes)
    if folds is not None:
        table = table.add_column(1, "fold", pa.array(folds, pa.int64()))
    with atomic_path(path) as temporary:
        _WRITERS[Path(path).suffix.lower()](table, temporary)


def _table(answers: AnswersOf[Any], classes: Sequence[str]) -> pa.Table:
    broken = answers.broken
    nothing = [None] * len(broken)
    truth, answer = _classes_in(answers.labels), _classes_in(answers.heads[FUSED].said)
    columns: dict[str, Any] = {"image": _text([*answers.names, *(each.name for each in broken)])}
    if answers.groups is not None:
        columns["group"] = _text([*answers.groups, *(each.group for each in broken)])
    of_broken = [None if each.label is None else classes_of(each.label) for each in broken]

    def named(labels: Sequence[tuple[int, ...] | None]) -> pa.Array:
        return _text([None if each is None else "|".join(classes[one] for one in each) for each in labels])

    right = [one == other for one, other in zip(truth, answer, strict=True)]
    columns |= {
        "truth": named([*truth, *of_broken]),
        "answer": named([*answer, *nothing]),
        "correct": pa.array([*right, *nothing], pa.bool_()),
        "error": _text([*[None] * len(truth), *(each.line for each in broken)]),
    }
    missing = pa.nulls(len(broken), pa.float32())
    for head, own in answers.heads.items():
        probabilities = own.probabilities()
        for number, name in enumerate(classes):
            values = pa.array(probabilities[:, number])
            columns[stored_text(f"{head}:{name}")] = pa.chunked_array([values, missing])
    return pa.table(columns)


def _classes_in(labels: Array) -> list[tuple[int, ...]]:
    """Return the classes of every image from their numbers (N,), or from which it has (N, K)."""
    if labels.ndim == 1:
        return [(label,) for label in labels.tolist()]
    return [tuple(np.flatnonzero(row).tolist()) for row in labels]


def _text(values: Sequence[str | None]) -> pa.Array:
    return pa.array([None if value is None else stored_text(value) for value in values], pa.string())


def stored_text(text: str) -> str:
    """Return a text that UTF-8 has: names of files need not be, and are then shown escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _for_spreadsheets(table: pa.Table) -> pa.Table:
    for number, column in enumerate(table.columns):
        if pa.types.is_string(column.type):
            safe = pa.array([_no_formula(value) for value in column.to_pylist()], pa.string())
            table = table.set_column(number, table.schema.names[number], safe)
    return table


def _no_formula(text: str | None) -> str | None:
    if text is None or not _FORMULA.match(text) or _NUMBER.fullmatch(text):
        return text
    return f"'{text}"
