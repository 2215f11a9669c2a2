"""Streams of shards: order, disjoint parts, splits and damage."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from conformer_vision.errors import UserError, option, reason_of, some_names

from .base import match_classes
from .groups import find_group_column, match, plain_name
from .images import BrokenImageError
from .splits import Request, Split, Splitting
from .stream import ImageStream, StreamedImage

SHUFFLE_BLOCK = 1000
"""Encoded images that are shuffled together. While they are read, as many of the next block are loaded."""


class Row(NamedTuple):
    """One image of a shard as it is stored."""

    name: str
    """What messages call the image."""
    key: str
    """What the image is called in the set, however many shards there are."""
    image: Any
    """The file's bytes, its path, a mapping with ``bytes`` or ``path``, or None."""
    label: Any
    problem: str | None = None
    """What the image lacks."""
    group: str | None = None
    """What the column of groups holds, where `Splitting.group` names one."""


class Shard(ABC):
    """One file of a set, read from its beginning; picklable for worker processes.

    Attributes:
        name: what messages call the shard.
        length: number of images, if known.
    """

    name: str
    length: int | None = None

    @abstractmethod
    def read(self) -> Iterator[Row]:
        """Yield the images as they are stored; whatever the file's reader raises is raised."""

    def shortage(self, rows: int) -> str | None:
        """Say what is wrong if the shard ended after too few images."""
        if self.length is not None and rows != self.length:
            return f"holds {rows} images instead of {self.length}"
        return None


class ShardStream(ImageStream):
    """Images of shards, each of which is read from its beginning.

    Args:
        shards: those of the split, or of the set if it is cut.
        classes: the class names.
        own: the set's class names.
        labels: index into ``classes`` by stored label, number or name.
        cut: the split to take of the shards, ``train`` or ``val``; None for all images.
        splitting: how to cut.
        length: as in `ImageStream`, if it is known without the shards' lengths.
        mirrorable: as in `ImageStream`.
        multilabel: as in `ImageStream`.
        searched: whether the group of the splitting is searched in the keys of the images; else the shards
            give it.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        classes: Sequence[str],
        own: Sequence[str],
        labels: Mapping[int | str, int],
        cut: Split | None,
        splitting: Splitting,
        length: int | None = None,
        mirrorable: bool = True,
        multilabel: bool = False,
        searched: bool = False,
    ) -> None:
        self.classes = tuple(classes)
        self.mirrorable = mirrorable
        self.multilabel = multilabel
        self._shards = tuple(shards)
        self._own = tuple(own)
        self._labels = labels
        self._cut = cut
        self.is_cut = cut is not None
        self._splitting = splitting
        self._pattern = re.compile(plain_name(splitting.group or "")) if searched else None
        counts = [shard.length for shard in shards]
        known = [count for count in counts if count is not None]
        self.length = sum(known) if len(known) == len(counts) else length
        if self.length is not None and cut is not None:
            share = splitting.val_fraction if cut == "val" else 1 - splitting.val_fraction
            self.length = round(self.length * share)

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
        return iter(images)

    def _share(self, seed: int | None, part: int, parts: int) -> tuple[list[Shard], slice]:
        """Return the shards that the part reads, in their order, and which images of each."""
        import numpy as np

        shards = list(self._shards)
        if seed is not None:
            shards = [shards[place] for place in np.random.default_rng(seed).permutation(len(shards))]
        if parts <= len(shards) or not shards:
            return shards[part::parts], slice(0, None, 1)
        shard = part % len(shards)
        readers = len(range(shard, parts, len(shards)))
        return [shards[shard]], slice(part // len(shards), None, readers)

    def _encoded(self, shards: Sequence[Shard], dealt: slice, *, skip: int) -> Iterator[StreamedImage]:
        """Yield the part's images after the first ``skip``; skipped shards of known length stay closed."""
        waiting = list(shards)
        while waiting and self._cut is None and (count := waiting[0].length) is not None:
            mine = len(range(*dealt.indices(count)))
            if mine > skip:
                break
            skip -= mine
            waiting.pop(0)
        images = (islice(self._read_shard(shard), dealt.start, None, dealt.step) for shard in waiting)
        return islice(chain.from_iterable(images), skip, None)

    def _read_shard(self, shard: Shard) -> Iterator[StreamedImage]:
        """Yield images of the split in stored order and, if the shard is damaged, one more that says so."""
        count = 0
        try:
            for row in shard.read():
                count += 1
                if self._cut is None or self._holds_out(row) == (self._cut == "val"):
                    yield self._image(row)
        except Exception as error:  # a damaged or missing file: pyarrow's, fsspec's, the server's error
            yield _broken(shard.name, f"cannot be read from row {count} on ({reason_of(error)})")
            return
        if (problem := shard.shortage(count)) is not None:
            yield _broken(shard.name, problem)

    def _holds_out(self, row: Row) -> bool:
        if (group := self._group(row)) is not None:
            return self._splitting.number("", group) < self._splitting.val_fraction
        label = None if self.multilabel else plain_label(row.label)
        if isinstance(label, int):
            label = self._own[label] if 0 <= label < len(self._own) else None
        return self._splitting.number(label or "", row.key) < self._splitting.val_fraction

    def _group(self, row: Row) -> str | None:
        """Return the group of an image; None without groups, or if it has none."""
        found = row.group
        if self._pattern is not None and (match := self._pattern.search(plain_name(row.key))):
            found = match[bool(match.re.groups)]
        return plain_name(found).strip() or None if found is not None else None

    def _image(self, row: Row) -> StreamedImage:
        image = row.image
        if self._splitting.group is not None and self._group(row) is None:
            return _broken(row.name, f"it has no group ({self._splitting.group!r})")
        data, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (image, None)
        if row.problem is not None:
            return _broken(row.name, row.problem)
        if row.label is None:
            return _broken(row.name, "it has no label (null)")
        if self.multilabel and not isinstance(row.label, list):
            return _broken(row.name, f"label {repr(row.label)[:100]} is no list, but those of others are")
        classes = set()
        for stored in row.label if self.multilabel else [row.label]:
            label = plain_label(stored)
            if label is None or label not in self._labels:
                names = some_names([name for name in self._labels if isinstance(name, str)])
                problem = f"label {repr(stored)[:100]} is neither a class ({names}) nor the number of one"
                return _broken(row.name, problem)
            classes.add(self._labels[label])
        found = path if data is None else data
        if found is None:
            return _broken(row.name, "it holds no image (null)")
        return StreamedImage(row.name, found, tuple(sorted(classes)) if self.multilabel else classes.pop())


def open_shards(
    shards: Mapping[Split, Sequence[Shard]],
    request: Request,
    *,
    own: Sequence[str],
    origin: str,
    lengths: Mapping[Split, int | None] | None = None,
    mirrorable: bool = True,
    columns: Collection[str] = (),
    multilabel: bool = False,
) -> ShardStream:
    """Open one split of a set.

    Args:
        shards: those of ``train`` and ``val``, or of ``all``. Without ``val`` the set is cut, image by image.
        request: which images to open.
        own: the set's class names.
        origin: what an error calls the set.
        lengths: number of images by split, if they are known without the shards' lengths.
        mirrorable: as in `ImageStream`.
        columns: those that may hold the group of an image, which the shards then give (`Row.group`).
        multilabel: whether labels are lists.

    Raises:
        UserError: folds, no training images to take, classes that `match_classes` refuses, or a group that
            none of the first images has.
    """
    split, splitting = request.split, request.splitting
    if splitting.folds is not None:
        raise UserError(f"{origin} is a stream, which cannot be cut into folds; give val_fraction")
    names, index = match_classes(own, request.classes, origin=origin)
    searched = False
    if splitting.group is not None:
        searched = find_group_column(splitting.group, columns, origin=origin, has_paths=True) is None
        _check_groups(next(iter(shards.values()))[0], splitting.group, origin, searched=searched)
    used = list(shards)
    cut = None if split == "all" or "val" in shards else split
    if "val" in shards:
        if split == "train" and "train" not in shards:
            raise UserError(f"{origin} holds validation images but none for training; add some")
        used = [part for part in used if split in (part, "all")]
    counts = [lengths[part] for part in used] if lengths else [None]
    return ShardStream(
        [shard for part in used for shard in shards[part]],
        classes=names,
        own=own,
        labels={**dict(enumerate(index)), **dict(zip(own, index, strict=True))},
        cut=cut,
        splitting=splitting,
        length=None if None in counts else sum(filter(None, counts)),
        mirrorable=mirrorable,
        multilabel=multilabel,
        searched=searched,
    )


def _check_groups(shard: Shard, group: str, origin: str, *, searched: bool) -> None:
    """Refuse a group that none of the first images has, or whose expression takes too long."""
    try:
        rows = list(islice(shard.read(), 5))
    except Exception:  # reading the images will name the damage
        return
    found = [row.group for row in rows]
    if searched:
        found = match(group, [plain_name(row.key) for row in rows], origin=origin)
    if rows and not any(found):
        where = f"the names of the first images, such as {rows[0].key!r}" if searched else "the first images"
        raise UserError(f"{option('group', group)} is not in {where} of {origin}; correct it")


def plain_label(stored: Any) -> int | str | None:
    """Take a label, or the one in a mapping; None if it is neither a number nor a name."""
    if isinstance(stored, Mapping):
        stored = stored.get("label")
    if isinstance(stored, str):
        return stored.strip()
    return stored if isinstance(stored, int) and not isinstance(stored, bool) else None


def _broken(name: str, problem: str) -> StreamedImage:
    """Stand for an image that is not there."""
    return StreamedImage(name, BrokenImageError(f"{name}: {problem}"), -1)


def _shuffled(
    images: Iterable[StreamedImage], *, seed: tuple[int, ...], block: int
) -> Iterator[StreamedImage]:
    """Shuffle block by block, each by the seed and its number, while the next one fills."""
    import numpy as np

    waiting = iter(images)
    held = list(islice(waiting, SHUFFLE_BLOCK))
    while held:
        following: list[StreamedImage] = []
        for place in np.random.default_rng((*seed, block)).permutation(len(held)).tolist():
            following.extend(islice(waiting, 1))
            yield held[place]
        held = following
        block += 1
