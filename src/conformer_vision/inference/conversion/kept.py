"""Where conversions are kept, and which of them are whole.

A conversion is a folder of its own with the files of its format and `MANIFEST`, which has the key of what it
was made from and the hash of each file. It appears in one step, complete and checked; whatever else is found
there is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from conformer_vision.environment import package_cache
from conformer_vision.errors import UserError, reason_of
from conformer_vision.runs import ModelSource, run_folder_of

FOLDER = "conversions"
"""Name of the folder of conversions in a run folder, and in the package's cache."""
MANIFEST = "conversion.json"
_LEFTOVER = 24 * 60 * 60
"""Seconds after which an unfinished conversion is one of a process that was killed."""
_MOST_BYTES = 10_000
"""Size of a manifest, at most."""


@dataclass(frozen=True)
class Slot:
    """What one conversion is called; the newest one takes the place of those of the same ``name``."""

    name: str
    """Weights, format, precision, and size where it is fixed."""
    key: str
    """Hash of all that the conversion depends on, in hexadecimal."""
    files: tuple[str, ...]
    """Names of its files."""

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.name}-{self.key[:16]}"

    def is_older(self, folder: str) -> bool:
        """Tell whether a folder is that of another conversion of the same name."""
        return re.fullmatch(f"{re.escape(self.name)}-[0-9a-f]{{16}}", folder) is not None


def folders_for(source: ModelSource) -> Iterator[Path]:
    """Yield where the conversions of a model may be: in its run folder, then in the package's cache."""
    if source.kind in ("weights", "checkpoint") and (run := run_folder_of(source.path)) is not None:
        yield run / FOLDER
    named = source.kind == "published"
    origin = str(source.path) if named else os.path.realpath(source.path)
    mark = hashlib.sha256(os.fsencode(origin)).hexdigest()[:8]
    with suppress(UserError):  # there is no cache
        yield package_cache(FOLDER) / f"{name_of(source)}-{mark}"


def name_of(source: ModelSource) -> str:
    """Return what a model is called in the names of files."""
    return source.path.stem if source.kind in ("weights", "checkpoint") else source.path.name


def find_kept(source: ModelSource, slot: Slot) -> Path | None:
    """Return the folder of a conversion that is whole, or None."""
    places = (folder / slot.folder for folder in folders_for(source))
    return next((place for place in places if _is_whole(place, slot)), None)


def discard(place: Path) -> None:
    """Remove a conversion."""
    shutil.rmtree(place, ignore_errors=True)


def keep(source: ModelSource, slot: Slot, write: Callable[[Path], None]) -> Path:
    """Make a conversion and keep it where it can be written, and return its folder.

    If another process has made the same in the meantime, that one is taken.

    Args:
        source: Where the model comes from.
        slot: What the conversion is called.
        write: Writes the files into a folder, and checks them.

    Raises:
        UserError: As ``write``, or none of the folders can be written.
    """
    problem = "there is no folder for caches; set XDG_CACHE_HOME to one"
    for folder in folders_for(source):
        temporary = folder / f".{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            problem = (
                f"{folder} cannot be written ({reason_of(error)}); set XDG_CACHE_HOME to a folder that can"
            )
            continue
        try:
            write(temporary)
            hashes = {name: _hash(temporary / name) for name in slot.files}
            (temporary / MANIFEST).write_text(
                json.dumps({"key": slot.key, "files": hashes}), encoding="utf-8"
            )
            place = _move(temporary, folder / slot.folder, slot)
            _tidy(folder, slot)
            return place
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {reason_of(error)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    raise UserError(problem)


def _move(temporary: Path, place: Path, slot: Slot) -> Path:
    try:
        os.rename(temporary, place)
    except OSError:  # something is there
        if not _is_whole(place, slot):
            shutil.rmtree(place, ignore_errors=True)
            with suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()
            os.rename(temporary, place)
    return place


def _tidy(folder: Path, slot: Slot) -> None:
    """Remove earlier conversions of the same name, and those that were never finished."""
    for path in folder.iterdir():
        with suppress(OSError):
            unfinished = path.name.startswith(".") and time.time() - path.stat().st_mtime > _LEFTOVER
            if unfinished or (path.name != slot.folder and slot.is_older(path.name)):
                shutil.rmtree(path)


def _is_whole(place: Path, slot: Slot) -> bool:
    """Tell whether a conversion is there, made from what it should be, as it was written."""
    try:
        with open(place / MANIFEST, encoding="utf-8") as file:
            manifest = json.loads(file.read(_MOST_BYTES))
        return (
            manifest["key"] == slot.key
            and manifest["files"].keys() == set(slot.files)
            and all(_hash(place / name) == manifest["files"][name] for name in slot.files)
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
