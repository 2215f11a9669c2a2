"""Sets of the Hugging Face hub, and local folders that ``datasets`` can load, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, reason_of

from .arrow import choose_splits, without_place
from .arrow_columns import Columns, find_columns
from .groups import find_group_column
from .hub import load
from .names import SPLIT_COLUMNS, is_column
from .sharded import Row, Shard, ShardStream, open_shards
from .splits import Request, Split

if TYPE_CHECKING:
    import datasets

_READ_AHEAD = 16  # rows taken from `datasets` at a time


def open_hub_stream(name: str, request: Request) -> ShardStream:
    """Open a set of the hub, or a local folder that ``datasets`` can load.

    Splits and columns are found as by `hub.open_hub`. Class names are those of a ``ClassLabel``.

    Args:
        name: ``NAME`` or ``NAME:CONFIG``, on the hub or a local path.
        request: which images to open; its ``data_dir`` is the cache of ``datasets``.

    Raises:
        UserError: not found, no such column, labels without class names.
    """
    import datasets

    origin = f"hfids/{name}"
    found = load(name, request, origin=origin, streaming=True)
    splits = choose_splits(list(found), origin=origin)
    features = _features(found[next(iter(splits.values()))], origin=origin)
    columns = find_columns(features, origin=origin)
    own = columns.class_names or request.classes
    if own is None:
        raise UserError(
            f"{origin}: the labels in column {columns.label!r} have no names; store them as ClassLabel, "
            "or give classes"
        )
    named = [name for name in features if is_column(name, SPLIT_COLUMNS[:1])]
    if named and "val" not in splits:
        raise UserError(
            f"{origin} names splits in column {named[0]!r}, by which a stream is not divided; "
            f"give hfds/{name}, or a set with the splits in files of their own"
        )
    others = [name for name in features if name != columns.image]
    group = None
    if request.splitting.group is not None:
        group = find_group_column(request.splitting.group, others, origin=origin, has_paths=True)
    shards: dict[Split, list[_Rows]] = {}
    for part, split in splits.items():
        kept = dict.fromkeys((columns.image, columns.label, *([] if group is None else [group])))
        rows = found[split].select_columns(list(kept))
        if isinstance(features[columns.image], datasets.Image):
            rows = rows.cast_column(columns.image, datasets.Image(decode=False))
        shards[part] = [
            _Rows(rows, number, columns, f"{origin} {split}", group) for number in range(rows.num_shards)
        ]
    lengths = {part: _length(found[split], split) for part, split in splits.items()}
    return open_shards(shards, request, own=own, origin=origin, lengths=lengths, columns=others)


class _Rows(Shard):
    """One of the shards of a split, by its number."""

    def __init__(
        self,
        rows: datasets.IterableDataset,
        number: int,
        columns: Columns,
        split: str,
        group: str | None = None,
    ) -> None:
        self.name = split if rows.num_shards == 1 else f"{split} shard {number}"
        self._rows = rows
        self._number = number
        self._columns = columns
        self._group = group

    def read(self) -> Iterator[Row]:
        """Yield the rows, of which some are read ahead."""
        rows = self._rows.shard(num_shards=self._rows.num_shards, index=self._number)
        count = 0
        # `iter` reads the whole shard; `__iter__` would share it among the workers of a DataLoader.
        for batch in rows.iter(_READ_AHEAD):
            images, labels = batch[self._columns.image], batch[self._columns.label]
            groups = batch[self._group] if self._group is not None else [None] * len(labels)
            for image, label, group in zip(images, labels, groups, strict=True):
                path = image.get("path") if isinstance(image, Mapping) else image
                key = without_place(path) if isinstance(path, str) else f"{self._number} {count}"
                shown = None if group is None else str(group)
                yield Row(f"{self.name} row {count}", key, image, label, group=shown)
                count += 1


def _features(rows: datasets.IterableDataset, *, origin: str) -> Mapping[str, Any]:
    try:  # the first rows tell, if the set does not
        features = rows.features or rows._resolve_features().features
    except Exception as error:
        raise UserError(f"{origin}: its first rows cannot be read ({reason_of(error)})") from error
    return features or {}


def _length(rows: datasets.IterableDataset, split: str) -> int | None:
    """The number of rows that the set declares."""
    return getattr((rows.info.splits or {}).get(split), "num_examples", None) or None
