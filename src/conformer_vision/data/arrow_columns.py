"""Which columns of a set of ``datasets`` hold the images and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from conformer_vision.errors import UserError, option, some_names

from .label_columns import label_columns
from .names import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, is_column
from .splits import Splitting


@dataclass(frozen=True)
class Columns:
    """Where a set keeps its images and labels."""

    image: str
    labels: tuple[str, ...]
    """One column, or one per class."""
    class_names: tuple[str, ...] | None
    """Those that a ``ClassLabel`` declares, or the names of the columns per class."""
    several: bool
    """Whether an image may have several labels."""

    @property
    def label(self) -> str:
        """The first column of labels."""
        return self.labels[0]

    @property
    def per_class(self) -> bool:
        """Whether each class has a column of its own."""
        return len(self.labels) > 1


def find_columns(features: Mapping[str, Any], splitting: Splitting, *, origin: str) -> Columns:
    """The columns of images and labels of a set of ``datasets``.

    Images are a column of type ``Image``, of bytes, of paths, or of a struct with ``bytes`` or ``path``;
    labels a ``ClassLabel`` or a column of strings or integers, or of lists of them. Of several, the one named
    as in `names.IMAGE_COLUMNS` or `names.LABEL_COLUMNS` is taken; a column of type ``Image`` or
    ``ClassLabel`` may have any name where it is the only one. `Splitting.label_column` names others.

    Raises:
        UserError: a column is missing or holds something else.
    """
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    plain = [name for name, feature in features.items() if _holds_images(feature)]
    image = _pick(typed, [*typed, *plain], IMAGE_COLUMNS, features, origin=origin, holds="images")
    kinds = {name: list_content(feature) or feature for name, feature in features.items()}
    declared = [name for name, kind in kinds.items() if isinstance(kind, ClassLabel)]
    if not any(is_column(name, LABEL_COLUMNS) for name in declared):
        declared = [name for name in declared if kinds[name] is features[name]] or declared
    usable = [*declared, *(name for name, kind in kinds.items() if _is_value(kind, "string", "int"))]
    named = label_columns(splitting, features, origin=origin)
    if named is None:
        named = (_pick(declared, usable, LABEL_COLUMNS, features, origin=origin, holds="labels"),)
    if len(named) > 1:
        for name in named:
            if not isinstance(features[name], ClassLabel) and not _is_value(features[name], *_FLAGS):
                _refuse(name, features, origin=origin, holds="columns of classes")
        return Columns(image, named, named, True)
    label = named[0]
    if label not in usable:
        _refuse(label, features, origin=origin, holds="labels")
    if splitting.label_separator is not None and not _is_value(features[label], "string"):
        raise UserError(
            f"{option('label_separator', splitting.label_separator)}: column {label!r} of {origin} does not "
            "hold texts; leave it out"
        )
    names = kinds[label].names if label in declared else None
    several = list_content(features[label]) is not None or splitting.label_separator is not None
    return Columns(image, named, tuple(names) if names else None, several)


def list_content(feature: Any) -> Any | None:
    """What the lists of a column hold; None for a column of single values."""
    if isinstance(feature, list) and len(feature) == 1:  # so they were written before datasets 4
        return feature[0]
    return getattr(feature, "feature", None)


def _is_value(feature: Any, *kinds: str) -> bool:
    from datasets import Value

    return isinstance(feature, Value) and any(kind in feature.dtype for kind in kinds)


_FLAGS = ("bool", "int", "float", "string")
_STORED_AS = {
    "images": "files' bytes or paths (binary, string, or a struct with the fields bytes and path)",
    "labels": "integers or strings, or lists of them",
    "columns of classes": "booleans, numbers or strings",
}


def _pick(
    typed: Sequence[str],
    usable: Sequence[str],
    wanted: Sequence[str],
    features: Mapping[str, Any],
    *,
    origin: str,
    holds: str,
) -> str:
    for names in (typed, usable):
        if any(is_column(name, wanted) for name in names):
            return find_column(names, wanted, origin=origin, holds=holds)
        if names is typed and len(typed) == 1:
            return typed[0]
    _refuse(find_column(features, wanted, origin=origin, holds=holds), features, origin=origin, holds=holds)


def _refuse(name: str, features: Mapping[str, Any], *, origin: str, holds: str) -> NoReturn:
    raise UserError(
        f"{origin}: column {name!r} holds {some_names([str(features[name])])}; {holds} must be stored as "
        f"{_STORED_AS[holds]}"
    )


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(_holds_images(feature.get(name)) for name in ("bytes", "path"))
    return _is_value(feature, "binary", "string")
