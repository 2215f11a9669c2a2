"""Folders for caches, also without a home, with one that cannot be written, or as an unknown user."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

from conformer_vision.errors import UserError

_HELD = {"TORCH_HOME": "torch", "HF_HUB_CACHE": "huggingface/hub"}
"""What others keep in the cache folder: their variable -> its name there."""


def cache_folder() -> Path:
    """Return the folder where things are kept that can be made again; it need not exist yet.

    It is ``$XDG_CACHE_HOME``, else ``~/.cache``. Where that cannot be written, it is a folder of this user in
    the one for temporary files.

    Raises:
        UserError: None of them can be written; the message names the variable to set.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the specification says to ignore a relative path
        return Path(given)
    own = _in_home(".cache")
    return own if own is not None and _can_write(own) else _temporary_folder()


def package_cache(name: str) -> Path:
    """Return the folder of this package's own in the cache folder, for things of one kind.

    Raises:
        UserError: As `cache_folder`.
    """
    return cache_folder() / "conformer-vision" / name


def prepare_process() -> None:
    """Make the libraries that the command uses find a folder to write, a user's name, and no display.

    Each reads variables of its own and else the home: torch, Hugging Face, matplotlib, triton.
    """
    os.environ["MPLBACKEND"] = "Agg"  # figures go to files; the backend of a notebook is not installed here
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):  # depends on the version of Python
        os.environ["LOGNAME"] = str(_user())
    own, settings = _in_home(".cache"), _in_home(".config")
    try:
        folder = cache_folder()
    except UserError:
        return  # most commands need none
    if settings is None or not _can_write(settings):
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    if folder != own:
        for variable, name in _HELD.items():  # what is there already can be read
            if own is not None and (own / name).is_dir():
                os.environ.setdefault(variable, str(own / name))
        os.environ["XDG_CACHE_HOME"] = str(folder)
    if own is None:
        os.environ["HOME"] = str(folder)


def _in_home(name: str) -> Path | None:
    home = os.path.expanduser("~")
    return Path(home, name) if os.path.isabs(home) else None  # "~" where there is none


def _can_write(folder: Path) -> bool:
    """Tell whether files can be written into a folder of the home, which itself must be there."""
    return os.access(folder if folder.is_dir() else folder.parent, os.W_OK | os.X_OK)


def _temporary_folder() -> Path:
    """Return a folder that this user alone can write, the same every time."""
    try:
        folder = Path(tempfile.gettempdir(), f"conformer-vision-{_user()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid == _user() and not status.st_mode & 0o022:
            return folder
        return Path(tempfile.mkdtemp(prefix="conformer-vision-"))  # somebody else made it
    except OSError as error:
        raise UserError(
            f"no folder for caches can be written ({error.strerror or error}); set XDG_CACHE_HOME to one"
        ) from error


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
