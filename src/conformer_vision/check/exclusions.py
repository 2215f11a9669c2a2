"""Choose which copies to leave out of training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from .duplicates import Copies
from .result import ImageRef


def exclusions(
    copies: Copies, image: Callable[[int], ImageRef], *, redundant: bool
) -> Iterator[tuple[int, str]]:
    """Yield the number and reason of every training image to leave out; validation images always stay.

    Left out are copies of a validation image; all copies among training images of different labels,
    since it is unknown which label is right; and, with ``redundant``, all but the first of a class's
    images with equal pixels. Only direct copies count, not those through a third image.

    Args:
        copies: the copies of the set.
        image: returns the image with a number.
        redundant: see above.
    """
    near: defaultdict[int, list[int]] = defaultdict(list)
    for left, right in copies.pairs.tolist():
        near[left].append(right)
        near[right].append(left)
    for group in copies.groups:
        images = {number: image(number) for number in group}
        # Of images with equal pixels, by the first: one in val, and one in train of each class.
        held_out: dict[int, int] = {}
        by_label: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for number, one in images.items():
            first = int(copies.first[number])
            if one.split == "val":
                held_out.setdefault(first, number)
            else:
                by_label[first].setdefault(one.label, number)
        for number, one in images.items():
            if one.split == "val":
                continue
            first = int(copies.first[number])
            direct = [("copy of", first), *(("looks like", other) for other in near[first])]
            reasons = [
                f"{verb} {images[held_out[other]].name} in val" for verb, other in direct if other in held_out
            ]
            reasons += [
                f"{verb} {images[found].name}, but is {one.label} and not {label}"
                for verb, other in direct
                for label, found in by_label[other].items()
                if label != one.label
            ]
            original = by_label[first][one.label]
            if redundant and original != number:
                reasons.append(f"copy of {images[original].name}")
            if reasons:
                yield number, reasons[0]
