"""Class folders in a zip or tar archive, unpacked once into the cache folder."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from lzma import LZMAError
from pathlib import Path
from tarfile import HeaderError, ReadError

from conformer_vision.environment import package_cache
from conformer_vision.errors import UserError, reason_of

from .folder import FileSource, open_folder
from .splits import Request

MAX_BYTES = 1 << 40
"""Bytes that an archive may unpack to."""

MAX_MEMBERS = 50_000_000
"""Files and folders that an archive may hold."""

_MAX_DEPTH = 100  # folders within each other; unpacking takes the square of it
_MAX_EXPANSION = 100  # images hardly compress; archives made to fill a disk expand by 1000
_MAX_SMALL = 1 << 30  # bytes that any archive may grow to
_CHUNK = 1 << 20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError)

_logger = logging.getLogger(__name__)


def open_archive(path: Path, request: Request) -> FileSource:
    """Read an archive of class folders, or of ``train`` and ``val`` of class folders.

    Hidden files and macOS's own are left out. Images are called by the archive's path and theirs in it.

    Raises:
        UserError: as `open_images`; an archive that is damaged, holds links, devices, encrypted files
            or paths that lead out of it, or grows beyond the limits; a cache folder without room.
    """
    return open_folder(unpacked(path), request, shown=path)


def unpacked(path: Path) -> Path:
    """The folder in the cache that holds the archive's content; unpacked there when first asked for.

    It is named by the archive's path, size and time of change, so a changed archive is unpacked
    anew. It appears in one step: a process that is killed, or unpacks at the same time, leaves
    either the whole folder or none.

    Raises:
        UserError: as `open_archive`.
    """
    status = path.stat()
    state = f"{os.path.realpath(path)}\n{status.st_size}\n{status.st_mtime_ns}"
    target = package_cache("archives") / hashlib.sha256(os.fsencode(state)).hexdigest()[:24]
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _no_room(path, error) from error
    try:
        _logger.info("unpacking %s to %s", path, target)
        _unpack(path, temporary)
        try:
            os.rename(temporary, target)
        except OSError as error:
            if not target.is_dir():  # else another process was faster, and has unpacked the same
                raise _no_room(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _unpack(path: Path, target: Path) -> None:
    kind, unpack = ("zip", _unpack_zip) if zipfile.is_zipfile(path) else ("tar", _unpack_tar)
    try:
        unpack(path, target, _Budget(path))
    except (*_DAMAGED, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, tarfile.FilterError):
            raise UserError(f"{path}: {reason_of(error)}; pack the images themselves") from error
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{path} holds a path that is too long to unpack; pack it anew") from error
        if isinstance(error, OSError) and error.errno is not None:  # gzip and bz2 report damage without
            raise _no_room(path, error) from error
        raise UserError(
            f"{path} cannot be read as a {kind} archive ({reason_of(error)}); it may be truncated or "
            "damaged: copy it again"
        ) from error


def _unpack_zip(path: Path, target: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            budget.count()
            if not _is_wanted(path, info.filename):
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{path}: its member {info.filename!r} is a link; pack the file itself")
            if info.flag_bits & 1:
                raise UserError(
                    f"{path}: its member {info.filename!r} is encrypted; pack it without a password"
                )
            place = target / info.filename
            if info.is_dir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as packed, open(place, "wb") as file:
                while chunk := packed.read(_CHUNK):
                    budget.spend(len(chunk))
                    file.write(chunk)


def _unpack_tar(path: Path, target: Path, budget: _Budget) -> None:
    with tarfile.open(path, "r:*", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
            budget.count()
            budget.spend(member.size)
            if not _is_wanted(path, member.name):
                continue
            if member.issym() or member.islnk():
                raise UserError(
                    f"{path}: its member {member.name!r} is a link; pack the files themselves, with "
                    "tar --dereference --hard-dereference"
                )
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise UserError(f"{path}: its member {member.name!r} is not a regular file; pack it without")
            archive.extract(member, target, set_attrs=False, filter="data")


class _Member(tarfile.TarInfo):
    """A member of a tar; tarfile takes a damaged header for the end of the archive, this does not."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Member:
        offset = tarfile.offset
        try:
            return super().fromtarfile(tarfile)
        except HeaderError as error:
            if type(error).__name__ in ("EOFHeaderError", "EmptyHeaderError"):  # the end
                raise
            raise ReadError(f"bad header at byte {offset}") from error


def _is_wanted(path: Path, name: str) -> bool:
    """Tell whether to unpack a member: unless it is hidden.

    Raises:
        UserError: a path that leads out of the archive, or deeper than anyone sorts images.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or (os.name == "nt" and "\\" in name):
        raise UserError(f"{path}: the path of its member {name!r} leads out of it; pack it anew")
    if len(parts) > _MAX_DEPTH:
        raise UserError(f"{path} holds more than {_MAX_DEPTH} folders within each other; pack it anew")
    return bool(parts) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _Budget:
    """Refuse archives that unpack to too much."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = min(max(_MAX_SMALL, _MAX_EXPANSION * path.stat().st_size), MAX_BYTES)
        self._spent = 0
        self._members = 0

    def spend(self, count: int) -> None:
        self._spent += count
        self._refuse(self._spent > self._bytes, f"unpacks to more than {self._bytes} bytes")

    def count(self) -> None:
        self._members += 1
        self._refuse(self._members > MAX_MEMBERS, f"holds more than {MAX_MEMBERS} files")

    def _refuse(self, exceeded: bool, problem: str) -> None:
        if exceeded:
            raise UserError(
                f"{self._path} {problem}; if that is right, unpack it yourself and give the folder"
            )


def _no_room(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} has to be unpacked once, but that fails ({reason_of(error)}); set XDG_CACHE_HOME "
        "to a folder with room, or unpack it yourself and give the folder"
    )
