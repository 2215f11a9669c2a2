"""Where images lie: folders and files of this machine, or an object store."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pyarrow import fs

from conformer_vision.errors import UserError, reason_of

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PATIENCE = "retry_limit_seconds"
_SECONDS = 30
"""How long Google's store is tried; by default it is a quarter of an hour, also without credentials."""


def is_address(name: str) -> bool:
    """Tell whether a name is the address of a store, such as ``s3://bucket/photos``, and no path."""
    return _ADDRESS.match(name) is not None


@dataclass(frozen=True)
class Store:
    """A file system of pyarrow that an address leads to; it can be sent to other processes."""

    scheme: str
    files: fs.FileSystem

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Args:
            path: In the store.

        Raises:
            OSError: It is not there, or cannot be read.
        """
        with self.files.open_input_file(path) as file:
            content: bytes = file.read()
        return content

    def address_of(self, path: str) -> str:
        """Return the address of a path in the store, without the keys and options that addresses may have."""
        return path if _ADDRESS.match(path) else f"{self.scheme}://{path}"  # as of http

    def path_of(self, address: str) -> str:
        """Return the path that `address_of` made an address of."""
        return address.removeprefix(f"{self.scheme}://")


@dataclass(frozen=True)
class Input:
    """One of the inputs of a command."""

    shown: str
    """As given, without keys."""
    store: Store | None
    """None for a file or folder of this machine."""
    path: str
    """In the store, or as given."""

    @property
    def place(self) -> str:
        """The address or the absolute path, wherever the command runs."""
        return os.path.abspath(self.path) if self.store is None else self.store.address_of(self.path)

    @classmethod
    def open(cls, given: str) -> Input:
        """Find the store of an input.

        Raises:
            UserError: An address that is not understood, or a store that cannot be reached.
        """
        if (address := _ADDRESS.match(given)) is None:
            return cls(given, None, given)
        scheme, uri, shown = address[1].lower(), given, without_keys(given)
        if scheme in ("gs", "gcs") and _PATIENCE not in uri:
            uri += f"{'&' if '?' in uri else '?'}{_PATIENCE}={_SECONDS}"
        try:
            files, path = fs.FileSystem.from_uri(uri)
        except ValueError as error:  # pyarrow's for an address that it does not know
            raise UserError(
                f"{shown}: no store of pyarrow; give a path, s3://, gs://, abfss://, hdfs://, or "
                "fsspec+NAME:// for a file system of fsspec"
            ) from error
        except Exception as error:  # every library behind a store has its own, as for missing keys
            raise unreachable(shown, error) from error
        if isinstance(files, fs.LocalFileSystem):
            return cls(path, None, path)
        return cls(shown, Store(scheme, files), path.rstrip("/"))


def unreachable(address: str, error: BaseException) -> UserError:
    """Return the line for a store that answers with an error, such as for missing credentials."""
    return UserError(f"cannot read {address}: {reason_of(error)}")


def without_keys(address: str) -> str:
    """Return an address without the keys that may stand in front of an ``@``, and without options."""
    scheme, mark, rest = address.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}"
