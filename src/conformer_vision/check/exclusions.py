"""Choose which copies to leave out of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .duplicates import Copies
from .result import ImageRef


def exclusions(
    copies: Copies, image: Callable[[int], ImageRef], *, redundant: bool
) -> Iterator[tuple[int, str]]:
    """Yield the number and reason of every training image to leave out; validation images always stay.

    Left out are copies of a validation image; all copies among training images of different classes,
    since it is unknown which label is right; and, with ``redundant``, all but the first of a class's
    images with equal pixels. Only direct copies count, not those through a third image.

    Args:
        copies: what was found.
        image: returns the image with a number.
        redundant: see above.
    """
    near: dict[int, list[int]] = {}
    for left, right in copies.pairs.tolist():
        near.setdefault(left, []).append(right)
        near.setdefault(right, []).append(left)
    for group in copies.groups:
        images = {number: image(number) for number in group}
        held_out: dict[int, int] = {}  # first of equal images -> one of them in val
        by_label: dict[int, dict[str, int]] = {}  # likewise -> class -> one of them in train
        for number, one in images.items():
            first = int(copies.first[number])
            if one.split == "val":
                held_out.setdefault(first, number)
            else:
                by_label.setdefault(first, {}).setdefault(one.label, number)
        for number, one in images.items():
            if one.split == "val":
                continue
            first = int(copies.first[number])
            reason = _reason(first, one, near.get(first, []), held_out, by_label, images)
            original = by_label[first][one.label]
            if reason is None and redundant and original != number:
                reason = f"copy of {images[original].name}"
            if reason is not None:
                yield number, reason


def _reason(
    first: int,
    one: ImageRef,
    near: list[int],
    held_out: dict[int, int],
    by_label: dict[int, dict[str, int]],
    images: dict[int, ImageRef],
) -> str | None:
    for other in (first, *near):
        if other in held_out:
            return f"{_verb(other, first)} {images[held_out[other]].name} in val"
    for other in (first, *near):
        for label, number in by_label.get(other, {}).items():
            if label != one.label:
                return f"{_verb(other, first)} {images[number].name}, but is {one.label} and not {label}"
    return None


def _verb(other: int, first: int) -> str:
    return "copy of" if other == first else "looks like"
