"""One tar shard in WebDataset's layout: images and labels as files ``KEY.jpg`` and ``KEY.cls``."""

from __future__ import annotations

import json
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from conformer_vision.errors import reason_of

from ..images import IMAGE_EXTENSIONS
from .base import require

_IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_EXTENSIONS)
_LABELS = ("cls", "json", "txt")  # what is there first tells the label
_MOST_LABEL_BYTES = 1 << 20
_TIMEOUT = 60  # seconds without a byte from a server


@dataclass(frozen=True)
class TarShard:
    """Where a shard is.

    Attributes:
        path: a local path, or an http(s) address.
        name: what a message calls it.
    """

    path: str
    name: str

    @property
    def remote(self) -> bool:
        """Whether it is an address."""
        return is_remote(self.path)


class Span(NamedTuple):
    """Bytes of a file that are read when they are needed."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            EOFError: the file ends before.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise EOFError("the shard is truncated")
        return data


class Sample(NamedTuple):
    """What a shard stores under one key.

    Attributes:
        name: the image file's name; the key where there is none.
        image: the image file's bytes, or where they are; None where there is none.
        label: a number or a class name; None where there is none.
        problem: why there is no label, where it cannot be read.
    """

    name: str
    image: bytes | Span | None
    label: int | str | None
    problem: str = "it has no label (a .cls, .json or .txt file of the same name)"


class DamagedShardError(Exception):
    """A shard that cannot be read to its end, and why."""


class _Member(tarfile.TarInfo):
    """A file of the archive. Python's own reader takes a damaged header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the mark at the end of every archive
                raise
            if type(error).__name__ in ("EmptyHeaderError", "TruncatedHeaderError"):
                raise tarfile.ReadError("it ends in the middle") from error
            raise tarfile.ReadError(f"a header is damaged, {error}") from error


def read_samples(shard: TarShard, *, images: bool = True) -> Iterator[Sample]:
    """The samples of a shard, in stored order.

    Images of an uncompressed local shard are not read, only found. Of other files than images
    and labels nothing is read; nothing is unpickled.

    Args:
        shard: where it is.
        images: False for the labels alone.

    Raises:
        DamagedShardError: after the samples before the damage.
    """
    damage: list[Exception] = []
    group = require("webdataset.tariterators").group_by_keys
    held: Sample | None = None
    try:
        for files in group(_files(shard, damage, images=images)):
            if held is not None:
                yield held
            held = _sample(files)
    except ValueError as error:  # two files of the same name
        damage.append(error)
    # Of the sample that the damage is in, a file may be missing.
    if held is not None and (not damage or (held.image is not None and held.label is not None)):
        yield held
    if damage:
        raise DamagedShardError(reason_of(damage[0])) from damage[0]


def _files(shard: TarShard, damage: list[Exception], *, images: bool) -> Iterator[dict[str, Any]]:
    """Files as `group_by_keys` takes them; ends at a damage, which is added to the list."""
    kinds = _IMAGES.union(_LABELS) if images else frozenset(_LABELS)
    try:
        with _opened(shard) as (archive, seekable):
            size = Path(shard.path).stat().st_size if seekable else None
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # the archive would keep all of them in memory
                kind = member.name.rpartition("/")[2].partition(".")[2].lower()
                if not member.isreg() or kind not in kinds:
                    continue
                if size is not None and member.offset_data + member.size > size:
                    raise EOFError(f"it ends in the middle of {member.name}")
                data: bytes | Span
                if seekable and kind in _IMAGES and not member.issparse():
                    data = Span(shard.path, member.offset_data, member.size)
                else:
                    data = _content(archive, member, most=None if kind in _IMAGES else _MOST_LABEL_BYTES)
                yield {"fname": member.name, "data": data, "__url__": shard.path}
    except Exception as error:  # tarfile, zlib, lzma, a server: each has errors of its own
        damage.append(error)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, *, most: int | None) -> bytes:
    file = archive.extractfile(member)
    if file is None:  # not a regular file, of which there are none here
        raise tarfile.ReadError(f"{member.name} has no content")
    return file.read() if most is None else file.read(most)


@contextmanager
def _opened(shard: TarShard) -> Iterator[tuple[tarfile.TarFile, bool]]:
    """The archive, and whether places in it are places in the file."""
    file: IO[bytes]
    if shard.remote:
        with (
            urllib.request.urlopen(shard.path, timeout=_TIMEOUT) as file,
            tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive,
        ):
            yield archive, False
        return
    with open(shard.path, "rb") as file:
        compressed = not _is_plain(file)
        with tarfile.open(fileobj=file, mode="r|*" if compressed else "r:", tarinfo=_Member) as archive:
            yield archive, not compressed


def _is_plain(file: IO[bytes]) -> bool:
    """Whether the archive is not compressed."""
    head = file.read(6)
    file.seek(0)
    return not head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))


def _sample(files: dict[str, Any]) -> Sample:
    key = files["__key__"]
    kind = next((kind for kind in files if kind in _IMAGES), None)
    sample = Sample(key, None, None) if kind is None else Sample(f"{key}.{kind}", files[kind], None)
    kind = next((kind for kind in _LABELS if kind in files), None)
    if kind is None:
        return sample
    try:
        label = _label(kind, files[kind].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return sample._replace(problem=f"its label ({kind}) cannot be read ({reason_of(error)})")
    if label is None:
        return sample._replace(problem=f'its {kind} has no label (a number or a name under "label")')
    return sample._replace(label=label)


def _label(kind: str, text: str) -> int | str | None:
    if kind == "json":
        content = json.loads(text)
        label = content.get("label") if isinstance(content, dict) else None
        return label if isinstance(label, (int, str)) and not isinstance(label, bool) else None
    text = text.strip()
    if kind == "cls" and text.removeprefix("-").isdecimal():
        return int(text)
    return text or None


def is_remote(path: str) -> bool:
    """Whether the path is an http(s) address."""
    return path.lower().startswith(("http://", "https://"))


def image_reader(image: bytes | Span) -> Any:
    """What a `base.Record` takes: the bytes, or a function that reads them."""
    return image if isinstance(image, bytes) else partial(Span.read, image)
