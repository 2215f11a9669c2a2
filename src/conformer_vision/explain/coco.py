"""Boxes and masks in COCO's form: run-length encoding, the JSON file, and boxes read from one.

See https://cocodataset.org/#format-data and, for the encoding, ``maskApi.c`` of pycocotools.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conformer_vision.errors import UserError, reason_of, some_names

__all__ = ["PixelBox", "RunLengths", "TrueBoxes", "read_true_boxes"]

_BITS = 5
"""Bits of a number in one character of the compressed form; the sixth says that more follow."""
_MORE = 1 << _BITS
_SIGN = 1 << (_BITS - 1)
_FIRST_CHARACTER = 48


class PixelBox(NamedTuple):
    """A box in pixels, as in COCO: the upper left corner, and the size."""

    x: float
    y: float
    width: float
    height: float

    def iou(self, other: PixelBox) -> float:
        """Return the intersection over the union with another box."""
        wide = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        high = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        shared = max(wide, 0.0) * max(high, 0.0)
        return shared / (self.width * self.height + other.width * other.height - shared)


@dataclass(frozen=True)
class RunLengths:
    """A mask as the lengths of its runs down the columns, in COCO's compressed text."""

    height: int
    width: int
    counts: str

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> RunLengths:
        """Encode a mask (H, W)."""
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        edges = np.concatenate(([0], changes, [flat.size]))
        lengths = np.diff(edges).tolist()
        # The first run is of pixels outside, so it may be empty.
        height, width = mask.shape
        return cls(height, width, _compressed([0, *lengths] if flat[0] else lengths))

    def mask(self) -> NDArray[np.bool_]:
        """Decode the mask (H, W)."""
        lengths = _lengths(self.counts)
        inside = np.arange(len(lengths)) % 2 == 1
        return np.repeat(inside, lengths).reshape((self.height, self.width), order="F")

    def to_coco(self) -> dict[str, Any]:
        """Return the value of ``segmentation`` in an annotation."""
        return {"size": [self.height, self.width], "counts": self.counts}


def _compressed(lengths: Sequence[int]) -> str:
    """Write numbers as text: from the fourth on, each as its difference to the one two places before."""
    text = []
    for place, length in enumerate(lengths):
        rest = length - lengths[place - 2] if place > 2 else length
        more = True
        while more:
            bits = rest & (_MORE - 1)
            rest >>= _BITS
            more = rest != (-1 if bits & _SIGN else 0)
            text.append(chr((bits | _MORE if more else bits) + _FIRST_CHARACTER))
    return "".join(text)


def _lengths(text: str) -> list[int]:
    """Read what `_compressed` wrote."""
    lengths: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - _FIRST_CHARACTER
        number |= (bits & (_MORE - 1)) << shift
        shift += _BITS
        if bits & _MORE:
            continue
        if bits & _SIGN:
            number -= 1 << shift
        lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
        number = shift = 0
    return lengths


@dataclass(frozen=True)
class TrueBoxes:
    """The labelled boxes of one image, by name of the class."""

    file_name: str
    size: tuple[int, int] | None
    """Width and height of the image, where the file says."""
    boxes: dict[str, list[PixelBox]]


def read_true_boxes(path: str | Path) -> list[TrueBoxes]:
    """Read the boxes of a COCO file, image by image; images without boxes are left out.

    Raises:
        UserError: There is no such file, or it is not COCO JSON with boxes.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({reason_of(error)}); give a COCO file") from error
    try:
        images = {image["id"]: image for image in found["images"]}
        names = {category["id"]: category["name"] for category in found["categories"]}
        truths: dict[Any, TrueBoxes] = {}
        for annotation in found["annotations"]:
            image = images[annotation["image_id"]]
            if image["id"] not in truths:
                size = (image["width"], image["height"]) if {"width", "height"} <= image.keys() else None
                truths[image["id"]] = TrueBoxes(_text(image["file_name"]), size, {})
            boxes = truths[image["id"]].boxes.setdefault(_text(names[annotation["category_id"]]), [])
            boxes.append(_box(annotation["bbox"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else reason_of(error)
        raise UserError(f"{path} is not a COCO file of boxes ({what})") from error
    if not truths:
        raise UserError(f"{path} has no boxes; label some images, or give a threshold instead")
    return list(truths.values())


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip("./"):
        raise ValueError(f"{value!r} is not a name")
    return value


def _box(value: Any) -> PixelBox:
    box = PixelBox(*map(float, value))
    if not all(map(math.isfinite, box)) or box.width <= 0 or box.height <= 0:
        raise ValueError(f"the box {value} is not [x, y, width, height]")
    return box


def match_files(truths: Sequence[TrueBoxes], paths: Iterable[str]) -> list[tuple[str, TrueBoxes]]:
    """Find the labelled images among paths: those that end with the name in the file, folders included.

    Raises:
        UserError: No path or several match a name.
    """
    parts = {path: PurePosixPath(Path(path).as_posix()).parts for path in dict.fromkeys(paths)}
    by_last: dict[str, list[str]] = {}
    for path, own in parts.items():
        by_last.setdefault(own[-1], []).append(path)
    pairs = []
    for truth in truths:
        wanted = PurePosixPath(truth.file_name.replace(os.sep, "/")).parts
        same = [path for path in by_last.get(wanted[-1], []) if parts[path][-len(wanted) :] == wanted]
        if len(same) > 1:
            raise UserError(
                f"{truth.file_name} of the labelled images may be {some_names(same)}; "
                "name it there with its folder"
            )
        if same:
            pairs.append((same[0], truth))
    if not pairs:
        raise UserError(f"none of the labelled images is given, such as {truths[0].file_name}")
    return pairs
