"""What every stream of labelled images offers, and how its shards are shared, ordered and split."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from conformer_vision.errors import UserError, reason_of, some_names

from ..images import BrokenImageError, open_image

if TYPE_CHECKING:
    from PIL import Image

    from ..splits import Split, Splitting

SHUFFLE_BUFFER = 1000
"""Encoded images that are held in memory to draw the next one from."""


class StreamedImage(NamedTuple):
    """One image of a stream.

    Attributes:
        name: what a message calls the image: its shard and its place in it.
        image: the RGB image, or why there is none; a broken image does not end the stream.
        label: an index into the stream's classes; -1 where the label cannot be told, of which
            ``image`` is then the error.
    """

    name: str
    image: Image.Image | BrokenImageError
    label: int


class ImageStream(ABC):
    """Labelled images one after the other, picklable for worker processes.

    Attributes:
        classes: the class names; a label is an index into them.
        mirrorable: whether an image mirrored left to right is still of its class.
        length: images of the split, where the set says it; None where it does not.
        parts: the largest number of readers that can share the stream without reading anything
            twice: the number of its shards, 1 or more.
    """

    classes: tuple[str, ...]
    mirrorable: bool = True
    length: int | None = None
    parts: int = 1

    @abstractmethod
    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """The images of one of ``parts`` disjoint parts, which together are the split, each once.

        The same arguments give the same images in the same order in any process.

        Args:
            seed: decides the order; None for the stored order.
            part: the part to read, from 0.
            parts: number of parts. With more of them than the stream has shards, several parts read
                the same shard, and each decodes images of its own.
            start: images of that order to leave out at the beginning; they are not decoded.

        Raises:
            UserError: a part or start that cannot be.
        """


class Record(NamedTuple):
    """An image before it is decoded.

    Attributes:
        encoded: the file's bytes or path, a function that reads the bytes, or what is wrong.
        damage: whether the record stands for what is missing of a damaged shard.
    """

    name: str
    label: int
    encoded: bytes | Path | Callable[[], bytes] | BrokenImageError
    damage: bool = False

    def loaded(self) -> Record:
        """The same with the bytes in memory, where a function reads them."""
        if isinstance(self.encoded, (bytes, Path, BrokenImageError)):
            return self
        try:
            return self._replace(encoded=self.encoded())
        except Exception as error:  # a damaged shard raises whatever its library does
            return broken_record(self.name, f"cannot be read ({reason_of(error)})")

    def decoded(self) -> StreamedImage:
        """The image; nothing is raised."""
        encoded = self.loaded().encoded
        if isinstance(encoded, BrokenImageError):
            return StreamedImage(self.name, encoded, self.label)
        if not isinstance(encoded, (bytes, Path)):  # as it is loaded
            raise TypeError(type(encoded))
        try:
            return StreamedImage(self.name, open_image(encoded, name=self.name), self.label)
        except BrokenImageError as error:
            return StreamedImage(self.name, error, self.label)


def broken_record(name: str, problem: str, *, damage: bool = False) -> Record:
    """A record that stands for an image that is not there."""
    return Record(name, -1, BrokenImageError(f"{name}: {problem}"), damage)


class Cut:
    """Which images of a set without a split of its own belong to a split.

    The validation part is whole shards where a number of them comes within a quarter of the
    share asked for; else images are drawn in every shard, each by its place in the shard.

    Args:
        split: the split wanted.
        splitting: share and seed.
        shards: number of shards of the whole set.

    Raises:
        UserError: folds, which a stream cannot be cut into.
    """

    def __init__(self, split: Split, splitting: Splitting, *, shards: int) -> None:
        import numpy as np

        self.split = split
        self.val_fraction = splitting.val_fraction
        self.seed = splitting.seed
        self.whole_shards = False
        self.shards = list(range(shards))
        held_out = round(shards * self.val_fraction)
        if split == "all":
            return
        if 0 < held_out < shards and math.isclose(held_out / shards, self.val_fraction, rel_tol=0.25):
            self.whole_shards = True
            order = np.random.default_rng(self.seed).permutation(shards).tolist()
            self.shards = sorted(order[:held_out] if split == "val" else order[held_out:])

    def keeps(self, shard: int) -> Iterator[bool]:
        """For each image of a shard, in stored order and without end, whether it belongs to the split."""
        import numpy as np

        rng = np.random.default_rng((self.seed, shard))
        while True:
            held_out = rng.random(4096) < self.val_fraction
            yield from (held_out if self.split == "val" else ~held_out).tolist()

    def select(self, shard: int, records: Iterator[Record]) -> Iterator[Record]:
        """The records of a shard that belong to the split, and that of its damage."""
        if self.split == "all" or self.whole_shards:
            return records
        kept = zip(records, self.keeps(shard), strict=False)
        return (record for record, keep in kept if keep or record.damage)

    def count(self, shard: int, length: int) -> int:
        """Of the ``length`` images of one of the cut's shards, how many belong to the split."""
        if self.split == "all" or self.whole_shards:
            return length
        return sum(islice(self.keeps(shard), length))


class ShardedStream(ImageStream):
    """A stream of shards, each of which is read from its beginning.

    A subclass says how the records of a shard are read, and gets order, parts and split.

    Args:
        classes: the class names.
        cut: the shards, by number, and what of them belongs to the split.
        lengths: images of each shard of the whole set, where they are known.
    """

    def __init__(self, classes: Sequence[str], *, cut: Cut, lengths: Sequence[int] | None = None) -> None:
        self.classes = tuple(classes)
        self.parts = max(len(cut.shards), 1)
        self._cut = cut
        if lengths is not None:
            self.length = sum(cut.count(shard, lengths[shard]) for shard in cut.shards)

    @abstractmethod
    def _records(self, shard: int) -> Iterator[Record]:
        """The records of a shard in stored order; where it is damaged, up to there and one that says so."""

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """See `ImageStream.read`; images are drawn from a buffer of `SHUFFLE_BUFFER` encoded ones."""
        shards, dealt = self._share(seed, part, parts, start)
        records = chain.from_iterable(
            islice(self._cut.select(shard, self._records(shard)), dealt.start, None, dealt.step)
            for shard in shards
        )
        if seed is None:
            ordered: Iterator[Record] = islice(records, start, None)
        else:
            ordered = _shuffled(records, seed=(seed, part, parts), start=start)
        return (record.decoded() for record in ordered)

    def _share(self, seed: int | None, part: int, parts: int, start: int) -> tuple[list[int], slice]:
        """The shards that the part reads, in their order, and which images of each."""
        import numpy as np

        if not 0 <= part < parts:
            raise UserError(f"part {part}: must be from 0 to {parts - 1}, as there are {parts}")
        if start < 0:
            raise UserError(f"start {start}: must be 0 or more")
        shards = list(self._cut.shards)
        if seed is not None:
            shards = np.random.default_rng(seed).permutation(shards).tolist()
        if parts <= len(shards) or not shards:
            return shards[part::parts], slice(0, None, 1)
        shard = part % len(shards)
        readers = len(range(shard, parts, len(shards)))
        return [shards[shard]], slice(part // len(shards), None, readers)


def _shuffled(records: Iterator[Record], *, seed: tuple[int, ...], start: int) -> Iterator[Record]:
    """Draws from a buffer that is filled up with the records to come; leaves out the first ``start`` drawn.

    Of what is left out nothing is loaded, where the records know how to load themselves.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    buffer: list[Record] = []
    drawn = 0
    for record in records:
        # Read while the shard's file stands there, not when its turn comes; unless it may be left out.
        new = record.loaded() if drawn >= start else record
        if len(buffer) < SHUFFLE_BUFFER:
            buffer.append(new)
            continue
        place = int(rng.integers(len(buffer)))
        old, buffer[place] = buffer[place], new
        drawn += 1
        if drawn > start:
            yield old
    order = rng.permutation(len(buffer)).tolist()
    yield from (buffer[place] for place in order[max(start - drawn, 0) :])


class Labels:
    """The classes of a stream: from what a set stores as a label to the index that the model knows.

    Args:
        own: names of the set's classes, in the order of its numbers.
        index: for each of them its index among the classes in use; its own number where None.
    """

    def __init__(self, own: Sequence[str], index: Sequence[int] | None = None) -> None:
        self._index = list(range(len(own)) if index is None else index)
        self._numbers = dict(zip(own, self._index, strict=True))

    def find(self, stored: object) -> int:
        """The index of a stored label, which is a number or a name.

        Raises:
            LookupError: there is no such class; the message says what is wrong with the label.
        """
        if isinstance(stored, str):
            if stored not in self._numbers:
                raise LookupError(
                    f"label {stored!r} is none of the classes ({some_names(list(self._numbers))})"
                )
            return self._numbers[stored]
        if not isinstance(stored, int) or isinstance(stored, bool):
            raise LookupError(f"label {stored!r} is neither a number nor a name")
        if not 0 <= stored < len(self._index):
            raise LookupError(
                f"label {stored} is out of range, there are {len(self._index)} classes "
                f"(0 to {len(self._index) - 1})"
            )
        return self._index[stored]


def refuse_folds(splitting: Splitting, *, origin: str) -> None:
    """Streams have no folds.

    Raises:
        UserError: folds are asked for.
    """
    if splitting.folds is not None:
        raise UserError(f"{origin} is a stream, which cannot be cut into folds; give val_fraction")


def require(module: str) -> Any:
    """Imports an optional package's module.

    Raises:
        UserError: it is not installed; the line says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"this needs the package {package} ({reason_of(error)}); pip install 'conformer-vision[scale]'"
        ) from error
