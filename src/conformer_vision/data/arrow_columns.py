"""Which columns of a set of ``datasets`` hold the images and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformer_vision.errors import UserError, some_names

from .names import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, is_column


@dataclass(frozen=True)
class Columns:
    """Where a set keeps its images and labels; ``class_names`` are those that a ``ClassLabel`` declares."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


def find_columns(features: Mapping[str, Any], *, origin: str) -> Columns:
    """The columns of images and labels of a set of ``datasets``.

    Images are a column of type ``Image``, of bytes, of paths, or of a struct with ``bytes`` or ``path``;
    labels a ``ClassLabel`` or a column of strings or integers. Of several, the one named as in
    `names.IMAGE_COLUMNS` or `names.LABEL_COLUMNS` is taken; a column of type ``Image`` or ``ClassLabel``
    may have any name where it is the only one.

    Raises:
        UserError: a column is missing or holds something else.
    """
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    typed = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    plain = [name for name, feature in features.items() if _holds_images(feature)]
    declared = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    words = [
        name
        for name, feature in features.items()
        if isinstance(feature, Value) and ("string" in feature.dtype or "int" in feature.dtype)
    ]
    image = _pick(typed, [*typed, *plain], IMAGE_COLUMNS, features, origin=origin, holds="images")
    label = _pick(declared, [*declared, *words], LABEL_COLUMNS, features, origin=origin, holds="labels")
    names = features[label].names if label in declared else None
    return Columns(image, label, tuple(names) if names else None)


_STORED_AS = {
    "images": "files' bytes or paths (binary, string, or a struct with the fields bytes and path)",
    "labels": "integers or strings",
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
    named = find_column(features, wanted, origin=origin, holds=holds)
    raise UserError(
        f"{origin}: column {named!r} holds {some_names([str(features[named])])}; {holds} must be stored as "
        f"{_STORED_AS[holds]}"
    )


def _holds_images(feature: Any) -> bool:
    from datasets import Value

    if isinstance(feature, Mapping):
        return any(_holds_images(feature.get(name)) for name in ("bytes", "path"))
    return isinstance(feature, Value) and ("binary" in feature.dtype or "string" in feature.dtype)
