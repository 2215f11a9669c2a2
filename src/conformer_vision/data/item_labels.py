"""The labels of Python items: one class, or several of them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from conformer_vision.errors import UserError

from .base import Label


def holds_several(stored: Any) -> bool:
    """Whether the label of a Python item is of the kind that may name several classes."""
    if isinstance(stored, list | tuple | set | frozenset):
        return True
    return getattr(stored, "ndim", 0) == 1 and len(stored) != 1  # a tensor of one number is a number


def item_label(stored: Any, places: Mapping[Any, int], name: str, *, several: bool) -> Label:
    """The class of a Python item as an index, or its classes.

    Args:
        stored: a class name or an index; or with several, a list or the like of them, or a tensor or array of
            0 and 1 for each class.
        places: the classes' indices by name.
        name: what an error calls the item.
        several: whether items have several labels.

    Raises:
        UserError: anything else.
    """
    if holds_several(stored) != several:
        kinds = ("several labels", "a single one")
        this, others = kinds if not several else kinds[::-1]
        raise UserError(
            f"{name}: label {_shown(stored)} is {this}, but the first item has {others}; give all of one kind"
        )
    if not several:
        return _number(stored, places, name)
    if not hasattr(stored, "ndim"):
        for each in stored:
            if isinstance(each, bool | float):
                raise UserError(
                    f"{name}: the list of labels holds {each}, which is neither a class name nor a number; "
                    "give a tensor or array for 0 and 1 of each class"
                )
        return tuple(sorted({_number(each, places, name) for each in stored}))
    values = stored.tolist()
    if len(values) != len(places):
        raise UserError(
            f"{name}: the label is a {type(stored).__name__} of {len(values)} values, but there are "
            f"{len(places)} classes; give 0 or 1 for each, or a list of class names or numbers"
        )
    if wrong := [value for value in values if value not in (0, 1)]:
        raise UserError(f"{name}: the label holds {_shown(wrong[0])}; it must be 0 or 1 for each class")
    return tuple(place for place, value in enumerate(values) if value)


def _number(stored: Any, places: Mapping[Any, int], name: str) -> int:
    if isinstance(stored, str) and stored in places:
        return places[stored]
    with suppress(TypeError):  # no number either
        if 0 <= (number := operator.index(stored)) < len(places):
            return number
    raise UserError(
        f"{name}: label {_shown(stored)} is neither a class name nor a number from 0 to {len(places) - 1}"
    )


def _shown(stored: Any) -> str:
    return repr(str(stored)[:100])
