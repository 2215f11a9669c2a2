"""Streams of shards that ``datasets`` reads: order, disjoint parts, splits and damage."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from conformer_vision.errors import UserError, reason_of, some_names

from .base import match_classes
from .images import BrokenImageError, open_image
from .splits import Request, Split, Splitting
from .stream import ImageStream, StreamedImage

if TYPE_CHECKING:
    import datasets

SHUFFLE_BLOCK = 1000
"""Encoded images that are shuffled together. While they are read, as many of the next block are loaded."""
_READ_AHEAD = 16  # rows taken from `datasets` at a time, where rows are stored in tables


@dataclass(frozen=True)
class Shard:
    """One file of a set, read from its beginning.

    Attributes:
        rows: the whole set.
        number: the shard's number in it.
        columns: the columns of encoded images and of labels.
        name: what messages call the shard.
        tar: path or address if the shard is a tar; images then go by their names in it.
        length: number of images, if known.
    """

    rows: datasets.IterableDataset
    number: int
    columns: tuple[str, str]
    name: str
    tar: str | None = None
    length: int | None = None

    def read(self) -> Iterator[tuple[Any, Any]]:
        """Yield images and labels as they are stored."""
        rows = self.rows.shard(num_shards=self.rows.num_shards, index=self.number)
        # `iter` reads the whole shard; `__iter__` would share it among the workers of a DataLoader.
        for batch in rows.iter(1 if self.tar else _READ_AHEAD):
            yield from zip(*(batch[column] for column in self.columns), strict=True)

    def shortage(self, rows: int) -> str | None:
        """Say what is wrong if the shard ended too early; tarfile takes damage for the end."""
        if self.length is not None and rows != self.length:
            return f"holds {rows} images instead of {self.length}"
        if self.tar and self.tar.lower().endswith(".tar") and os.path.isfile(self.tar):
            with open(self.tar, "rb") as file:
                if file.seek(0, os.SEEK_END) < 512 or file.seek(-512, os.SEEK_END) % 512:
                    return "is truncated"
                if file.read().strip(b"\0"):  # a whole tar ends in zeros
                    return "is truncated"
        return None


class _Encoded(NamedTuple):
    """An image before it is decoded: its file's bytes, its path or address, or what is wrong with it."""

    name: str
    label: int
    data: bytes | str | BrokenImageError

    def decode(self) -> StreamedImage:
        data = self.data
        if isinstance(data, BrokenImageError):
            return StreamedImage(self.name, data, self.label)
        try:
            encoded = _fetch(data, self.name) if isinstance(data, str) else data
            return StreamedImage(self.name, open_image(encoded, name=self.name), self.label)
        except BrokenImageError as error:
            return StreamedImage(self.name, error, self.label)


class ShardStream(ImageStream):
    """Images of shards, each of which is read from its beginning.

    Args:
        shards: all shards of the set.
        cut: what belongs to the split.
        classes: the class names.
        labels: index into ``classes`` by stored label, number or name.
        length: as in `ImageStream`, if it is known without the shards' lengths.
        mirrorable: as in `ImageStream`.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        cut: Cut,
        *,
        classes: Sequence[str],
        labels: Mapping[int | str, int],
        length: int | None = None,
        mirrorable: bool = True,
    ) -> None:
        self.classes = tuple(classes)
        self.mirrorable = mirrorable
        self.parts = max(len(cut.shards), 1)
        self._shards = tuple(shards)
        self._cut = cut
        self._labels = labels
        counts = [self._count(number) for number in cut.shards]
        known = [count for count in counts if count is not None]
        self.length = sum(known) if len(known) == len(counts) else length

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """See `ImageStream.read`; images are shuffled in blocks of `SHUFFLE_BLOCK`."""
        if not 0 <= part < parts:
            raise UserError(f"part {part}: must be from 0 to {parts - 1}, as there are {parts}")
        if start < 0:
            raise UserError(f"start {start}: must be 0 or more")
        shards, dealt = self._share(seed, part, parts)
        block = SHUFFLE_BLOCK if seed is not None else 1
        images = self._encoded(shards, dealt, skip=start // block * block)
        if seed is not None:
            shuffled = _shuffled(images, seed=(seed, part, parts), block=start // block)
            images = islice(shuffled, start % block, None)
        return (image.decode() for image in images)

    def _share(self, seed: int | None, part: int, parts: int) -> tuple[list[int], slice]:
        """Return the shards that the part reads, in their order, and which images of each."""
        import numpy as np

        shards = list(self._cut.shards)
        if seed is not None:
            shards = np.random.default_rng(seed).permutation(shards).tolist()
        if parts <= len(shards) or not shards:
            return shards[part::parts], slice(0, None, 1)
        shard = part % len(shards)
        readers = len(range(shard, parts, len(shards)))
        return [shards[shard]], slice(part // len(shards), None, readers)

    def _encoded(self, shards: Sequence[int], dealt: slice, *, skip: int) -> Iterator[_Encoded]:
        """Yield the part's images after the first ``skip``; skipped shards of known length stay closed."""
        waiting = list(shards)
        while waiting and (count := self._count(waiting[0])) is not None:
            mine = len(range(*dealt.indices(count)))
            if mine > skip:
                break
            skip -= mine
            waiting.pop(0)
        images = (islice(self._read_shard(shard), dealt.start, None, dealt.step) for shard in waiting)
        return islice(chain.from_iterable(images), skip, None)

    def _count(self, shard: int) -> int | None:
        """Count the images of the split in a shard; None if unknown."""
        length = self._shards[shard].length
        return None if length is None else self._cut.count(shard, length)

    def _read_shard(self, number: int) -> Iterator[_Encoded]:
        """Yield images of the split in stored order and, if the shard is damaged, one more that says so."""
        shard = self._shards[number]
        row = 0
        try:
            for (image, label), keep in zip(shard.read(), self._cut.keeps(number), strict=False):
                if keep:
                    yield self._image(shard, row, image, label)
                row += 1
        except Exception as error:  # a damaged or missing file: pyarrow's, fsspec's, the server's error
            yield _broken(shard.name, f"cannot be read from row {row} on ({reason_of(error)})")
            return
        if (problem := shard.shortage(row)) is not None:
            yield _broken(shard.name, problem)

    def _image(self, shard: Shard, row: int, image: Any, label: Any) -> _Encoded:
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, None)
        name = f"{shard.name}/{path}" if shard.tar and path else f"{shard.name} row {row}"
        stored = plain_label(label)
        if label is None:
            return _broken(name, "it has no label (null)")
        if stored is None or stored not in self._labels:
            names = some_names([name for name in self._labels if isinstance(name, str)])
            problem = f"label {repr(label)[:100]} is neither a class ({names}) nor the number of one"
            return _broken(name, problem)
        found = path if data is None else data
        if found is None:
            return _broken(name, "it holds no image (null)")
        return _Encoded(name, self._labels[stored], found)


class Cut:
    """Choose what belongs to a split of a set without a validation split of its own.

    If a number of whole shards comes within a quarter of the share asked for, the validation images are
    those shards; otherwise images are drawn in every shard, each by its place in the shard.

    Args:
        split: the split wanted.
        splitting: share and seed.
        shards: number of shards in the whole set.
    """

    def __init__(self, split: Split, splitting: Splitting, *, shards: int) -> None:
        import numpy as np

        self._split = split
        self._splitting = splitting
        self.shards = list(range(shards))
        held_out = round(shards * splitting.val_fraction)
        close = math.isclose(held_out / max(shards, 1), splitting.val_fraction, rel_tol=0.25)
        self._whole_shards = split == "all" or (0 < held_out < shards and close)
        if split != "all" and self._whole_shards:
            order = np.random.default_rng(splitting.seed).permutation(shards).tolist()
            self.shards = sorted(order[:held_out] if split == "val" else order[held_out:])

    def keeps(self, shard: int) -> Iterator[bool]:
        """Yield without end whether each image of a shard, in stored order, belongs to the split."""
        import numpy as np

        if self._whole_shards:
            while True:
                yield True
        rng = np.random.default_rng((self._splitting.seed, shard))
        while True:
            held_out = rng.random(4096) < self._splitting.val_fraction
            yield from (held_out if self._split == "val" else ~held_out).tolist()

    def count(self, shard: int, length: int) -> int:
        """Count the images of the split in a shard of ``length`` images."""
        return length if self._whole_shards else sum(islice(self.keeps(shard), length))


def open_shards(
    shards: Mapping[Split, Sequence[Shard]],
    request: Request,
    *,
    own: Sequence[str],
    origin: str,
    lengths: Mapping[Split, int | None] | None = None,
    mirrorable: bool = True,
) -> ShardStream:
    """Open one split of a set.

    Args:
        shards: those of ``train`` and ``val``, or of ``all``. Without ``val`` the set is cut; see `Cut`.
        request: which images to open.
        own: the set's class names.
        origin: what an error calls the set.
        lengths: number of images by split, if they are known without the shards' lengths.
        mirrorable: as in `ImageStream`.

    Raises:
        UserError: folds, no training images to take, or classes that `match_classes` refuses.
    """
    split, splitting = request.split, request.splitting
    if splitting.folds is not None:
        raise UserError(f"{origin} is a stream, which cannot be cut into folds; give val_fraction")
    names, index = match_classes(own, request.classes, origin=origin)
    used, length = list(shards), None
    if "val" in shards:
        if split == "train" and "train" not in shards:
            raise UserError(f"{origin} holds validation images but none for training; add some")
        used = [part for part in used if split in (part, "all")]
        split = "all"
    if split == "all" and lengths:
        counts = [lengths[part] for part in used]
        length = None if None in counts else sum(filter(None, counts))
    chosen = [shard for part in used for shard in shards[part]]
    return ShardStream(
        chosen,
        Cut(split, splitting, shards=len(chosen)),
        classes=names,
        labels={**dict(enumerate(index)), **dict(zip(own, index, strict=True))},
        length=length,
        mirrorable=mirrorable,
    )


def plain_label(stored: Any) -> int | str | None:
    """Take a label, or the one in a mapping; None if it is neither a number nor a name."""
    if isinstance(stored, Mapping):
        stored = stored.get("label")
    if isinstance(stored, str):
        return stored.strip()
    return stored if isinstance(stored, int) and not isinstance(stored, bool) else None


def keep_columns(
    rows: datasets.IterableDataset, image: str, label: str, features: Mapping[str, Any]
) -> datasets.IterableDataset:
    """Keep two columns, the images as they are stored."""
    import datasets

    rows = rows.select_columns([image, label])
    if isinstance(features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return rows


def _broken(name: str, problem: str) -> _Encoded:
    """Stand for an image that is not there."""
    return _Encoded(name, -1, BrokenImageError(f"{name}: {problem}"))


def _fetch(path: str, name: str) -> bytes:
    """Read an image that is stored beside its row."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except Exception as error:  # the file system's, the server's
        raise BrokenImageError(f"{name}: {path} cannot be read ({reason_of(error)})") from error
    return data


def _shuffled(images: Iterable[_Encoded], *, seed: tuple[int, ...], block: int) -> Iterator[_Encoded]:
    """Shuffle block by block, each by the seed and its number, while the next one fills."""
    import numpy as np

    waiting = iter(images)
    held = list(islice(waiting, SHUFFLE_BLOCK))
    while held:
        following: list[_Encoded] = []
        for place in np.random.default_rng((*seed, block)).permutation(len(held)).tolist():
            following.extend(islice(waiting, 1))
            yield held[place]
        held = following
        block += 1
