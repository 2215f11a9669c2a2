"""Sets of Hugging Face's ``datasets``: of the hub, of a local folder it can read, or saved to disk."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformer_vision.errors import UserError, reason_of, some_names

from .arrow import ArrowSource, Block, choose_splits, open_blocks, quiet_datasets
from .names import find_splits, parse_split
from .splits import Request, Split


def open_saved(path: Path, request: Request) -> ArrowSource:
    """Read a folder that ``datasets``' ``save_to_disk`` wrote: one set, or several splits of it.

    Splits and columns are found as by `open_hub`. Errors are those of `open_images`.
    """
    import datasets

    try:
        with quiet_datasets():
            found = datasets.load_from_disk(str(path))
    except Exception as error:  # its files are JSON and Arrow that anyone may have written
        raise UserError(f"{path} cannot be read as a set saved by datasets ({reason_of(error)})") from error
    return _open(found, str(path), request)


def open_hub(name: str, request: Request) -> ArrowSource:
    """Read a set of the Hugging Face hub, or a local folder that ``datasets`` can read.

    Splits are those of `names.SPLIT_NAMES`; a set without a validation split is split by seed.
    Columns are found by `arrow_columns.find_columns`. Code that a set brings along is never run.

    Args:
        name: ``NAME`` or ``NAME:CONFIG``; NAME as the hub has it, or a path with ``./`` or ``/`` in front.
        request: which images to open; its ``data_dir`` is the cache, that of ``datasets`` where None.

    Raises:
        UserError: as `open_images`; also no such set, no network, no access.
    """
    origin = f"hfds/{name}"
    return _open(load(name, request, origin=origin), origin, request)


def load(name: str, request: Request, *, origin: str, streaming: bool = False) -> Any:
    """Load what ``datasets`` finds by a name: a set, or several splits of one.

    Args:
        name: as in `open_hub`.
        request: whose ``data_dir`` is the cache.
        origin: what an error calls the set.
        streaming: rows are read when they are asked for.

    Raises:
        UserError: no such set, no network, no access, or splits that ``datasets`` does not tell apart.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    path, colon, config = name.rpartition(":")
    # A colon in a path, as in "C:/images", is not that of a configuration.
    if not colon or re.search(r"[/\\]", config) or len(path) < 2:
        path, config = name, ""
    if path.startswith("~"):
        path = os.path.expanduser(path)
    options: dict[str, Any] = {"streaming": True} if streaming else {}
    if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:  # datasets < 4
        options["trust_remote_code"] = False
    is_local = os.path.exists(path)
    try:
        with quiet_datasets(bars=not is_local):  # a download shows its progress
            found = datasets.load_dataset(
                path,
                config or None,
                cache_dir=None if request.data_dir is None else str(request.data_dir),
                **options,
            )
    except DatasetNotFoundError as error:
        raise UserError(
            f"{origin}: there is no such set, or it needs an account with access (hf auth login), "
            f"or the hub is not reached ({reason_of(error)})"
        ) from error
    except ConnectionError as error:
        raise UserError(
            f"{origin} cannot be loaded, as the hub is not reached ({reason_of(error)}); connect to the "
            "network, or give a folder saved with save_to_disk"
        ) from error
    except Exception as error:  # the readers of all formats, the network and the hub raise what they like
        raise UserError(f"{origin} cannot be loaded ({reason_of(error)})") from error
    if is_local and isinstance(found, Mapping):
        _check_local_splits(Path(path), list(found), origin=origin)
    return found


def _check_local_splits(folder: Path, found: Sequence[str], *, origin: str) -> None:
    """Refuse a local folder with splits that ``datasets``, which knows few words for them, did not find.

    Args:
        folder: what was loaded.
        found: the splits that ``datasets`` found.
        origin: what an error calls the set.

    Raises:
        UserError: files or folders are named like splits that were not found.
    """
    if not folder.is_dir() or len(find_splits(found, origin=origin)) == 2:
        return
    names = [path.name for parent in (folder, folder / "data") for path in parent.glob("[!.]*")]
    kinds = {split.kind: name for name in names if (split := parse_split(name)) is not None}
    if "train" in kinds and len(kinds) > 1:
        raise UserError(
            f"{origin}: datasets does not tell the splits {some_names(kinds.values())} apart; call them "
            f"train and test, or give {folder} without a prefix"
        )


def _open(found: Any, origin: str, request: Request) -> ArrowSource:
    from datasets import Dataset

    parts: dict[Split, list[Block]]
    if isinstance(found, Dataset):
        parts = {"all": [Block(found, origin, request.splitting)]}
    elif not isinstance(found, Mapping) or not found:
        raise UserError(f"{origin} holds no rows")
    else:
        chosen = choose_splits([str(name) for name in found], origin=origin)
        parts = {
            part: [Block(found[name], f"{origin} {name}", request.splitting)] for part, name in chosen.items()
        }
    return open_blocks(parts, origin, request)
