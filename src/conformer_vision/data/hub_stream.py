"""Sets of the Hugging Face hub, and local folders that ``datasets`` can load, row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conformer_vision.errors import UserError, reason_of

from .arrow import choose_splits, without_place
from .arrow_columns import Columns, find_columns
from .base import match_classes
from .groups import find_group_column
from .hub import load
from .label_columns import check_all_columns, flag, not_a_flag, split_text
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
    columns = find_columns(features, request.splitting, origin=origin)
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
        kept = dict.fromkeys((columns.image, *columns.labels, *([] if group is None else [group])))
        rows = found[split].select_columns(list(kept))
        if isinstance(features[columns.image], datasets.Image):
            rows = rows.cast_column(columns.image, datasets.Image(decode=False))
        shards[part] = [
            _Rows(rows, number, columns, f"{origin} {split}", request.splitting.label_separator, group)
            for number in range(rows.num_shards)
        ]
    lengths = {part: _length(found[split], split) for part, split in splits.items()}
    stream = open_shards(
        shards,
        request,
        own=own,
        origin=origin,
        lengths=lengths,
        columns=others,
        multilabel=columns.several,
    )
    if columns.per_class:
        index = match_classes(own, stream.classes, origin=origin)[1]
        check_all_columns(index, stream.classes, origin=origin)
    return stream


class _Rows(Shard):
    """One of the shards of a split, by its number."""

    def __init__(
        self,
        rows: datasets.IterableDataset,
        number: int,
        columns: Columns,
        split: str,
        separator: str | None,
        group: str | None = None,
    ) -> None:
        self.name = split if rows.num_shards == 1 else f"{split} shard {number}"
        self._rows = rows
        self._number = number
        self._columns = columns
        self._separator = separator
        self._group = group

    def read(self) -> Iterator[Row]:
        """Yield the rows, of which some are read ahead."""
        rows = self._rows.shard(num_shards=self._rows.num_shards, index=self._number)
        count = 0
        # `iter` reads the whole shard; `__iter__` would share it among the workers of a DataLoader.
        for batch in rows.iter(_READ_AHEAD):
            images = batch[self._columns.image]
            labels = zip(*(batch[name] for name in self._columns.labels), strict=True)
            groups = batch[self._group] if self._group is not None else [None] * len(images)
            for image, stored, group in zip(images, labels, groups, strict=True):
                path = image.get("path") if isinstance(image, Mapping) else image
                key = without_place(path) if isinstance(path, str) else f"{self._number} {count}"
                shown = None if group is None else str(group)
                label, problem = self._label(stored)
                yield Row(f"{self.name} row {count}", key, image, label, problem, shown)
                count += 1

    def _label(self, stored: Sequence[Any]) -> tuple[Any, str | None]:
        """Return the label or the labels that a row has, and what is wrong with it."""
        if self._columns.per_class:
            texts = ["" if value is None else str(value) for value in stored]
            pairs = list(zip(self._columns.labels, texts, strict=True))
            if wrong := [(text, name) for name, text in pairs if flag(text) not in (0, 1) and text.strip()]:
                return None, not_a_flag(*wrong[0])
            return [name for name, text in pairs if flag(text) == 1], None
        if self._separator is not None and isinstance(stored[0], str):
            return split_text(stored[0], self._separator), None
        return stored[0], None


def _features(rows: datasets.IterableDataset, *, origin: str) -> Mapping[str, Any]:
    try:  # the first rows tell, if the set does not
        features = rows.features or rows._resolve_features().features
    except Exception as error:
        raise UserError(f"{origin}: its first rows cannot be read ({reason_of(error)})") from error
    return features or {}


def _length(rows: datasets.IterableDataset, split: str) -> int | None:
    """The number of rows that the set declares."""
    return getattr((rows.info.splits or {}).get(split), "num_examples", None) or None
