"""Class folders in a zip or tar archive, read in place: nothing is unpacked beside it.

An image of a zip is inflated when it is read, one of a plain tar is a piece of the file. A
compressed tar has no way to an image but through all that come before it, so it is decompressed
once, to a plain tar in the cache folder.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import logging
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

from PIL import Image

from conformer_vision.errors import UserError, one_line, reason_of
from conformer_vision.files import atomic_path

from .base import ImageSource
from .folder import VAL_NAMES, Tree, read_tree
from .images import BrokenImageError, is_image_name, natural_key, open_image
from .splits import Split, Splitting

MAX_IMAGE_BYTES = 512 << 20
"""Largest image file that is taken out of an archive; a small archive can declare any size."""

_MAX_EXPANSION = 100  # a compressed tar of images grows little; one that is made to fill disks, by 1000
_MAX_SMALL = 1 << 30  # bytes that any archive may grow to
_CHUNK = 1 << 20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)
_Decompress = Callable[[IO[bytes]], BufferedIOBase]
_DECOMPRESSORS: dict[bytes, _Decompress] = {  # by the first bytes of the file
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Member:
    """An image or folder in an archive.

    Attributes:
        path: path of the archive, then that of the member in it.
        is_folder: whether it is a folder.
        size: bytes of the image file, as declared.
        place: its entry of the zip, or where it begins in the tar.
    """

    path: str
    is_folder: bool
    size: int
    place: zipfile.ZipInfo | int


class ArchiveSource(ImageSource):
    """Images in a zip or a plain tar.

    Args:
        classes: as in `ImageSource`.
        archive: the file to read.
        members: the images in it.
        labels: as in `ImageSource`.
    """

    def __init__(
        self, classes: Sequence[str], archive: Path, *, members: Sequence[_Member], labels: Sequence[int]
    ) -> None:
        super().__init__(classes, labels)
        self._archive = archive
        self._members = tuple(members)
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def image(self, index: int) -> Image.Image:
        """The RGB image."""
        return open_image(self.file(index), name=self.name(index))

    def file(self, index: int) -> bytes:
        """The image's file, taken out of the archive."""
        member = self._members[index]
        if member.size > MAX_IMAGE_BYTES:
            raise _broken(member, f"{member.size} bytes are more than the limit of {MAX_IMAGE_BYTES}")
        try:
            return self._read(member)
        except (OSError, ValueError, RuntimeError, *_DAMAGED) as error:
            raise _broken(member, f"the archive is damaged: {reason_of(error)}") from error

    def name(self, index: int) -> str:
        """The archive's path, then the image's in it."""
        return self._members[index].path

    def _read(self, member: _Member) -> bytes:
        if isinstance(member.place, zipfile.ZipInfo):
            with self._open_zip().open(member.place) as file:
                return file.read(member.size)
        with open(self._archive, "rb") as file:
            file.seek(member.place)
            data = file.read(member.size)
        if len(data) != member.size:
            raise EOFError("it is cut short")
        return data

    def _open_zip(self) -> zipfile.ZipFile:
        """The zip, opened anew in a forked process: the position in a shared file would be shared too."""
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = os.getpid(), zipfile.ZipFile(self._archive)
        return self._zip[1]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_zip": None}


def open_archive(
    path: Path, *, split: Split, splitting: Splitting, classes: Sequence[str] | None
) -> ArchiveSource:
    """Reads an archive of class folders by the rules of `folder.read_tree`.

    A single folder that holds everything else is looked through; hidden files and ``__MACOSX``
    are left out. Arguments and errors are those of `open_images`.

    Raises:
        UserError: also a damaged or encrypted archive, a link in it, a path that leads out of it.
    """
    archive = path
    if path.name.lower().endswith(".zip"):
        members = _read_zip(path)
    elif (decompress := _decompressor(path)) is None:
        members = _read_tar(path, origin=path)
    else:
        archive = _decompressed(path, decompress)
        members = _read_tar(archive, origin=path)
    by_path = {member.path: member for member in members}  # of two with one path the last, as tar has it
    found = read_tree(_ArchiveTree(path, by_path.values()), split=split, splitting=splitting, classes=classes)
    return ArchiveSource(
        found.classes, archive, members=[by_path[name] for name in found.paths], labels=found.labels
    )


def cache_folder() -> Path:
    """Where things that can be made again are kept: ``conformer-vision`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path there is to be ignored, says its specification.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "conformer-vision"


class _ArchiveTree(Tree):
    """Members of an archive as folders and images."""

    def __init__(self, path: Path, members: Iterable[_Member]) -> None:
        self.root = str(path)
        self._folders: dict[str, set[str]] = {}
        self._images: dict[str, list[str]] = {}
        for member in members:
            folder = member.path if member.is_folder else os.path.dirname(member.path)
            self._add_folder(folder)
            if not member.is_folder and is_image_name(os.path.basename(member.path)):
                self._images[folder].append(member.path)
        self._look_through()

    def folders(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, ()), key=natural_key)

    def images(self, folder: str) -> list[str]:
        return sorted(self._below(folder), key=natural_key)

    def has_loose_images(self, folder: str) -> bool:
        return bool(self._images.get(folder))

    def _add_folder(self, folder: str) -> None:
        """The folder and those it lies in; no recursion, as a path may have thousands of them."""
        inner = ""
        while folder not in self._folders or inner:
            new = folder not in self._folders
            if new:
                self._folders[folder] = set()
                self._images[folder] = []
            if inner:
                self._folders[folder].add(inner)
            if folder == self.root or not new:
                return
            folder, inner = os.path.split(folder)

    def _below(self, folder: str) -> Iterator[str]:
        waiting = [folder]
        while waiting:
            inner = waiting.pop()
            yield from self._images.get(inner, ())
            waiting.extend(f"{inner}/{name}" for name in self._folders.get(inner, ()))

    def _look_through(self) -> None:
        names = self.folders(self.root)
        if len(names) != 1 or names[0] in ("train", *VAL_NAMES) or self.has_loose_images(self.root):
            return
        inner = f"{self.root}/{names[0]}"
        if self.folders(inner) and not self.has_loose_images(inner):
            self.root = inner


def _member(
    origin: Path, name: str, *, is_folder: bool, size: int, place: zipfile.ZipInfo | int
) -> _Member | None:
    """A member under its checked path; None for one that is hidden, or neither folder nor image."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise UserError(f"{origin}: the path of its member {name!r} leads out of it; pack it anew")
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    return _Member("/".join([str(origin), *parts]), is_folder or not parts, size, place)


def _read_zip(path: Path) -> list[_Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, ValueError, *_DAMAGED) as error:
        raise _unreadable(path, "zip", error) from error
    members = []
    for info in infos:
        member = _member(path, info.filename, is_folder=info.is_dir(), size=info.file_size, place=info)
        if member is None:
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise UserError(f"{path}: its member {info.filename!r} is a link; pack the file itself")
        if info.flag_bits & 1:
            raise UserError(f"{path}: its member {info.filename!r} is encrypted; pack it without a password")
        members.append(member)
    return members


def _read_tar(path: Path, *, origin: Path) -> list[_Member]:
    """Members of a plain tar; ``origin`` is the file whose name they and messages get."""
    try:
        with tarfile.open(path, "r:") as archive:
            infos = archive.getmembers()
            assert archive.fileobj is not None  # for mypy: it is open
            archive.fileobj.seek(archive.offset)
            # tarfile takes a damaged header for the end of the archive; zeros or nothing are the end.
            if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    except (OSError, ValueError, *_DAMAGED) as error:
        raise _unreadable(origin, "tar", error) from error
    members = []
    for info in infos:
        member = _member(origin, info.name, is_folder=info.isdir(), size=info.size, place=info.offset_data)
        if member is None:
            continue
        if info.issym() or info.islnk():
            raise UserError(
                f"{origin}: its member {info.name!r} is a link; pack the files themselves, with "
                "tar --dereference --hard-dereference"
            )
        if not (info.isdir() or info.isreg()) or info.issparse():
            raise UserError(f"{origin}: its member {info.name!r} is no ordinary file; pack it anew without")
        members.append(member)
    return members


def _decompressor(path: Path) -> _Decompress | None:
    """What opens the tar where it is compressed, whatever its name says."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise _unreadable(path, "tar", error) from error
    return next((found for magic, found in _DECOMPRESSORS.items() if start.startswith(magic)), None)


def _decompressed(path: Path, decompress: _Decompress) -> Path:
    """The plain tar in the cache folder; it is made where there is none of this state of the file."""
    status = path.stat()
    state = f"{os.path.realpath(path)}\n{status.st_size}\n{status.st_mtime_ns}"
    key = hashlib.sha256(os.fsencode(state)).hexdigest()[:24]
    folder = cache_folder() / "archives"
    plain = folder / f"{key}.tar"
    if plain.is_file():
        return plain
    limit = max(_MAX_SMALL, _MAX_EXPANSION * status.st_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _logger.info("decompressing %s to %s", path, plain)
        with atomic_path(plain) as temporary:
            with open(temporary, "wb") as file:
                for chunk in _chunks(path, decompress, limit):
                    file.write(chunk)
            _read_tar(temporary, origin=path)  # what is no tar is not kept
    except OSError as error:
        raise _no_cache(path, str(error)) from error
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not str(error).startswith(str(path)):
            raise _no_cache(path, str(error)) from error
        raise
    return plain


def _chunks(path: Path, decompress: _Decompress, limit: int) -> Iterator[bytes]:
    total = 0
    try:
        with open(path, "rb") as packed, decompress(packed) as file:
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > limit:
                    raise UserError(
                        f"{path} grows to more than {limit} bytes when decompressed; if it is right so, "
                        "decompress it yourself and give the plain tar"
                    )
                yield chunk
    except (OSError, *_DAMAGED) as error:
        raise _unreadable(path, "compressed tar", error) from error


def _broken(member: _Member, reason: str) -> BrokenImageError:
    return BrokenImageError(f"{one_line(member.path)}: cannot be read as an image ({reason})")


def _unreadable(path: Path, kind: str, error: BaseException) -> UserError:
    return UserError(
        f"{path} cannot be read as a {kind} archive ({reason_of(error)}); it may be cut short or damaged: "
        "copy it again"
    )


def _no_cache(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} has to be decompressed once, but that fails ({reason}); set XDG_CACHE_HOME to a folder with "
        "room, or decompress it yourself and give the plain tar"
    )
