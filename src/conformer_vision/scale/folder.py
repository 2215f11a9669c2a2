"""The folder of answers: lists of images, and one parquet file for each part of a list.

An image is in one part of one list, and a part is always written to the same file. So no image is lost or
doubled, whatever is killed when, and even if a part is computed twice.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import compute, parquet

from conformer_vision.errors import UserError, option, reason_of
from conformer_vision.files import atomic_path, make_folder, remove_leftovers

LISTS = "_lists"
"""Readers of a folder of parquet files pass over names that begin so."""
_IMAGES = "images.parquet"
_SETTINGS = "settings.json"
_MOST_PARTS = 30_000
"""Of a list: the parts are row groups, of which parquet has no more than 32,767."""
UNFETCHED = b"unfetched"
"""Key in a part's metadata: how many images their store did not give."""


class Part(NamedTuple):
    """Images that are answered together: a row group of a list."""

    list: int
    number: int

    @property
    def file(self) -> str:
        """Name of the file of answers."""
        return f"part-{self.list:03}-{self.number:05}.parquet"


@dataclass(frozen=True)
class Progress:
    """What a folder holds at the start of a command."""

    missing: list[Part]
    answered: int
    """Images whose answers are there."""
    images: int
    """All images."""


@dataclass(frozen=True)
class AnswerFolder:
    """A folder of answers of one model to the images of some inputs."""

    path: Path

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Check that the folder is empty, or holds answers that the same settings gave.

        Args:
            settings: ``model``, ``inputs`` and ``options``, of which JSON holds each.

        Raises:
            UserError: It holds other files, or answers of another model, to other images or with other
                options.
        """
        if not self._lists:
            if self.path.exists() and any(each for each in os.listdir(self.path) if each != LISTS):
                raise UserError(f"{option('output')} {self.path} holds other files; give a new folder")
            return
        try:
            found = json.loads((self._lists[0] / _SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self._lists[0] / _SETTINGS}: {reason_of(error)}") from error
        another = f"give another {option('output')}"
        if found["model"]["version"] != settings["model"]["version"]:
            raise UserError(
                f"{self.path} holds answers of another model ({found['model']['path']}); {another}"
            )
        if found["inputs"] != settings["inputs"]:
            raise UserError(f"{self.path} holds answers to other images; {another}, or the same inputs")
        for name, value in settings["options"].items():
            if (before := found["options"].get(name)) != value:
                raise UserError(
                    f"{self.path} holds answers with {name} {_said(before)}, not {_said(value)}; {another}"
                )

    def without_listed(self, images: pa.Table) -> tuple[pa.Table, int]:
        """Return those images that no list has yet, and how many of the others have changed since.

        Args:
            images: As `list_images` returns them.
        """
        changed = 0
        for folder in self._lists:
            images, own_changed = _without_known(images, _read_table(folder / _IMAGES))
            changed += own_changed
        return images, changed

    def add(self, images: pa.Table, settings: Mapping[str, Any], *, part_size: int) -> None:
        """Add a list of images that no list has yet.

        Args:
            images: As `without_listed` returns them.
            settings: As for `claim`.
            part_size: So many images are a part.

        Raises:
            UserError: Nothing can be written there, or another command adds images too.
        """
        lists = make_folder(self.path / LISTS)
        temporary, place = lists / f".{uuid.uuid4().hex[:12]}", lists / f"{len(self._lists):03}"
        try:
            temporary.mkdir()
            (temporary / _SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
            parquet.write_table(images, temporary / _IMAGES, row_group_size=part_size, use_dictionary=False)
            os.rename(temporary, place)  # fails where the folder is there: of two commands one adds a list
        except OSError as error:
            if place.exists():
                raise UserError(f"another command adds images to {self.path}; wait for it to end") from error
            raise UserError(f"cannot write {place}: {reason_of(error)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def progress(self) -> Progress:
        """Look which parts are missing, not whole, or lack images that could not be fetched."""
        there = {path.name for path in self.path.glob("part-*")}
        missing, answered, images = [], 0, 0
        for number, folder in enumerate(self._lists):
            listed = parquet.read_metadata(folder / _IMAGES)
            for group in range(listed.num_row_groups):
                part, rows = Part(number, group), listed.row_group(group).num_rows
                images += rows
                if part.file in there and _is_whole(self.path / part.file, rows):
                    answered += rows
                else:
                    missing.append(part)
        return Progress(missing, answered, images)

    def images_of(self, part: Part) -> pa.Table:
        """Return the rows of a list that are a part."""
        return self._files[part.list].read_row_group(part.number)

    def first_of(self, part: Part) -> str:
        """Return the path or address of the first image of a part."""
        return os.fsdecode(self.images_of(part)["path"][0].as_py())

    def write(self, part: Part, answers: pa.Table) -> None:
        """Write the answers of a part, whole or not at all.

        Raises:
            UserError: They cannot be written.
        """
        with atomic_path(self.path / part.file) as temporary:
            parquet.write_table(answers, temporary)

    def tidy(self) -> None:
        """Remove what killed processes left, once nobody writes any more."""
        remove_leftovers(self.path)

    @property
    def _lists(self) -> list[Path]:
        if not (self.path / LISTS).is_dir():
            return []
        numbered = [path for path in (self.path / LISTS).iterdir() if path.name.isdecimal()]
        return sorted(numbered, key=lambda path: int(path.name))

    @cached_property
    def _files(self) -> list[parquet.ParquetFile]:
        return [parquet.ParquetFile(folder / _IMAGES) for folder in self._lists]


def _said(value: object) -> str:
    return "left out" if value is None else str(value)


def part_size(images: int, *, workers: int, batch_size: int) -> int:
    """Return how many images a part has: whole batches, and several parts for each process."""
    wanted = max(min(-(-images // (8 * workers)), 2048), -(-images // _MOST_PARTS))
    return -(-wanted // batch_size) * batch_size


def _read_table(path: Path) -> pa.Table:
    try:
        return parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error


def _without_known(images: pa.Table, known: pa.Table) -> tuple[pa.Table, int]:
    """Return the images that are not known yet, and how many of the others have changed."""
    places = compute.index_in(images["path"], value_set=known["path"])
    are_known = places.is_valid()
    now, before = images.filter(are_known), known.take(places.drop_null())
    changed = [
        compute.fill_null(compute.not_equal(now[name], before[name]), False) for name in ("size", "modified")
    ]
    number = compute.sum(compute.or_(*changed)).as_py() or 0
    return images.filter(compute.invert(are_known)), number


def _is_whole(path: Path, rows: int) -> bool:
    try:
        found = parquet.read_metadata(path)
    except (OSError, pa.ArrowException):  # half written, as when the power fails
        return False
    return found.num_rows == rows and int((found.metadata or {}).get(UNFETCHED, b"1")) == 0
