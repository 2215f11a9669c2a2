"""One training at a time in a run folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

LOCK_FILE = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder within the block; a killed process leaves it open.

    The lock is that of `lockf`, which forked reading processes do not inherit: they may outlive a killed
    training by some seconds. Where there are no such locks, as on Windows, the block runs without.

    Raises:
        UserError: another process has the folder, or it cannot be written.
    """
    path = folder / LOCK_FILE
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    try:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(
                        f"{folder} is being written by another training; choose another output"
                    ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)
