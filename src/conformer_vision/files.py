"""Writing files so that a reader never sees half a file."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conformer_vision.errors import UserError

_MARK = ".tmp"
_UMASK = os.umask(0o022)  # it can only be read by setting it
os.umask(_UMASK)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of `atomic_path` that a killed process left in a folder."""
    for path in Path(folder).glob(f".????????????{_MARK}*"):
        with suppress(OSError):
            path.unlink()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name in the folder of ``path``, and rename it to ``path`` if the block succeeds.

    If the block raises, also by Ctrl-C, the temporary file is removed and ``path`` stays as it was.

    Raises:
        UserError: the folder is missing or cannot be written, or ``path`` is a folder.
    """
    path = Path(path)
    # The suffix stays at the end: matplotlib and others choose the format by it.
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{_MARK}{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # safetensors writes files that nobody else may read
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # of a read-only file system too, where there is none
            temporary.unlink()


def make_folder(path: str | Path) -> Path:
    """Make a folder for results, and those above it; one that exists is as good.

    Raises:
        UserError: It cannot be made, or it is a file.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file of that name exists" if folder.exists() else error.strerror or str(error)
        raise UserError(f"cannot make the folder {folder}: {reason}") from error
    return folder
