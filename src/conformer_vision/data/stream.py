"""What a stream of labelled images offers, and how its shards are shared, ordered and split."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from conformer_vision.errors import UserError

from .images import BrokenImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from .splits import Request, Split

SHUFFLE_BLOCK = 1000
"""Encoded images that are shuffled together; as many of the next block are held while they are given out."""


class StreamedImage(NamedTuple):
    """One image of a stream.

    Attributes:
        name: what a message calls the image: its shard and its place in it.
        image: the RGB image, or why there is none; a broken image does not end the stream.
        label: an index into the stream's classes; -1 without a valid label, and ``image`` is then
            the error.
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
            UserError: a part or start out of range.
        """


class Cut:
    """Which images of a set without a validation split of its own belong to a split.

    The validation images are whole shards where a number of them comes within a quarter of the
    share asked for; else images are drawn in every shard, each by its place in the shard.

    Args:
        split: the split wanted.
        request: says share and seed.
        shards: number of shards of the whole set.
    """

    def __init__(self, split: Split, request: Request, *, shards: int) -> None:
        import numpy as np

        self.split = split
        self.val_fraction = request.splitting.val_fraction
        self.seed = request.splitting.seed
        self.whole_shards = split == "all"
        self.shards = list(range(shards))
        held_out = round(shards * self.val_fraction)
        close = math.isclose(held_out / max(shards, 1), self.val_fraction, rel_tol=0.25)
        if split != "all" and 0 < held_out < shards and close:
            self.whole_shards = True
            order = np.random.default_rng(self.seed).permutation(shards).tolist()
            self.shards = sorted(order[:held_out] if split == "val" else order[held_out:])

    def keeps(self, shard: int) -> Iterator[bool]:
        """For each image of a shard, in stored order and without end, whether it belongs to the split."""
        import numpy as np

        if self.whole_shards:
            while True:
                yield True
        rng = np.random.default_rng((self.seed, shard))
        while True:
            held_out = rng.random(4096) < self.val_fraction
            yield from (held_out if self.split == "val" else ~held_out).tolist()

    def count(self, shard: int, length: int) -> int:
        """How many of the ``length`` images of a shard belong to the split."""
        return length if self.whole_shards else sum(islice(self.keeps(shard), length))


class Record(Protocol):
    """An image before it is decoded."""

    @property
    def damage(self) -> bool:
        """Whether it stands for what is missing of a damaged shard."""

    def decoded(self) -> StreamedImage:
        """The image; nothing is raised."""


R = TypeVar("R", bound=Record)


class ShardedStream(ImageStream, Generic[R]):
    """A stream of shards, each of which is read from its beginning.

    A subclass says how the records of a shard are read, and gets order, parts and split.

    Args:
        classes: the class names.
        cut: the shards, by number, and what of them belongs to the split.
        lengths: images of each shard of the whole set; None where they are not known.
    """

    def __init__(self, classes: Sequence[str], *, cut: Cut, lengths: Sequence[int] | None = None) -> None:
        self.classes = tuple(classes)
        self.parts = max(len(cut.shards), 1)
        self._cut = cut
        self._lengths = lengths
        if lengths is not None:
            self.length = sum(cut.count(shard, lengths[shard]) for shard in cut.shards)

    @abstractmethod
    def _records(self, shard: int) -> Iterator[R]:
        """The records of a shard in stored order; where it is damaged, up to there and one that says so."""

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        """See `ImageStream.read`; images are shuffled in blocks of `SHUFFLE_BLOCK`."""
        if not 0 <= part < parts:
            raise UserError(f"part {part}: must be from 0 to {parts - 1}, as there are {parts}")
        if start < 0:
            raise UserError(f"start {start}: must be 0 or more")
        shards, dealt = self._share(seed, part, parts)
        block = SHUFFLE_BLOCK if seed is not None else 1
        records = self._from(shards, dealt, skip=start // block * block)
        if seed is None:
            return (record.decoded() for record in records)
        ordered = _shuffled(records, seed=(seed, part, parts), block=start // block)
        return (record.decoded() for record in islice(ordered, start % block, None))

    def _share(self, seed: int | None, part: int, parts: int) -> tuple[list[int], slice]:
        """The shards that the part reads, in their order, and which images of each."""
        import numpy as np

        shards = list(self._cut.shards)
        if seed is not None:
            shards = np.random.default_rng(seed).permutation(shards).tolist()
        if parts <= len(shards) or not shards:
            return shards[part::parts], slice(0, None, 1)
        shard = part % len(shards)
        readers = len(range(shard, parts, len(shards)))
        return [shards[shard]], slice(part // len(shards), None, readers)

    def _from(self, shards: Sequence[int], dealt: slice, *, skip: int) -> Iterator[R]:
        """The part's records without the first ``skip``; shards of known length are not opened for those."""
        waiting = list(shards)
        while self._lengths is not None and waiting:
            count = len(range(*dealt.indices(self._cut.count(waiting[0], self._lengths[waiting[0]]))))
            if count > skip:
                break
            skip -= count
            waiting.pop(0)
        chosen = (islice(self._chosen(shard), dealt.start, None, dealt.step) for shard in waiting)
        return islice(chain.from_iterable(chosen), skip, None)

    def _chosen(self, shard: int) -> Iterator[R]:
        """The records of a shard that belong to the split, and that of its damage."""
        kept = zip(self._records(shard), self._cut.keeps(shard), strict=False)
        return (record for record, keep in kept if keep or record.damage)


def _shuffled(records: Iterable[R], *, seed: tuple[int, ...], block: int) -> Iterator[R]:
    """The records, each block in an order drawn by the seed and its number; the next one fills meanwhile."""
    import numpy as np

    waiting = iter(records)
    held = list(islice(waiting, SHUFFLE_BLOCK))
    while held:
        following: list[R] = []
        for place in np.random.default_rng((*seed, block)).permutation(len(held)).tolist():
            following.extend(islice(waiting, 1))
            yield held[place]
        held = following
        block += 1
