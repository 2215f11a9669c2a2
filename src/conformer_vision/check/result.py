"""The result of a check."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass

from conformer_vision.errors import option

MEANINGS = {
    "leak": (
        "copies across train and val",
        "the model has seen these validation images, so the accuracy is too high",
    ),
    "shared_group": (
        "groups across train and val",
        "images of one group (patient, video, site) are on both sides, so the accuracy is too high",
    ),
    "conflict": ("copies with different labels", "at most one of them is labelled right"),
    "broken": ("broken", "cannot be decoded"),
    "truncated": ("truncated", "the data ends too early or is damaged; training cannot read it"),
    "gigantic": ("gigantic", "more pixels than the limit, according to the header; not decoded"),
    "missing_class": ("class missing", "a class without images in one split"),
    "constant_class": (
        "class of all images",
        "every image of one split has the class, so nothing can be learnt or measured about it",
    ),
    "extension": ("wrong extension", "the name says another format than the data; still read"),
    "redundant": ("copies within a class", "same labels and split: they count twice"),
    "tiny": ("tiny", "the short edge is shorter than the limit"),
    "elongated": ("elongated", "one edge is more than 8 times the other: a crop shows little of it"),
    "single_colour": ("single colour", "every pixel is the same"),
    "several_frames": ("several frames", "only the first frame is used"),
    "low_range": (
        "low range",
        "16 bits of which only the lowest are used, so it is seen almost black; scale its values",
    ),
    "passed_over": ("passed over", "a file that is no image of a format that is read, or in no class folder"),
}
"""The kinds of finding, the gravest first: short name and meaning."""

MOST_IMBALANCED = 5.0
"""Ratio of the largest to the smallest class above which balancing them is suggested."""


@dataclass(frozen=True)
class ImageRef:
    """One image of the set."""

    name: str
    """Its path, or file and row."""
    split: str
    """``train`` or ``val``."""
    label: str
    """Its class; of several labels ``cat|dog``, or ``no label``."""


@dataclass(frozen=True)
class Finding:
    """Something wrong or unusual with one image."""

    kind: str
    image: ImageRef
    detail: str


@dataclass(frozen=True)
class DuplicateGroup:
    """Two or more images that are copies of each other."""

    kinds: tuple[str, ...]
    """``leak`` (across train and val), ``conflict`` (different labels), both, or else ``redundant``."""
    exact: bool
    """Whether all have equal pixels; otherwise some only look alike."""
    images: tuple[ImageRef, ...]
    """Train first."""


@dataclass(frozen=True)
class SplitSummary:
    """The classes of one split."""

    name: str
    """``train`` or ``val``."""
    images: int
    counts: dict[str, int]
    """Images per class, including 0."""
    labels_per_image: dict[int, int] | None = None
    """Images by their number of labels, ascending; None where each has one."""

    @property
    def ratio(self) -> float | None:
        """Ratio of the largest class to the smallest one with images; None without images."""
        some = [count for count in self.counts.values() if count]
        return max(some) / min(some) if some else None

    @property
    def missing(self) -> tuple[str, ...]:
        """Classes without images."""
        return tuple(name for name, count in self.counts.items() if not count)

    @property
    def constant(self) -> tuple[str, ...]:
        """Classes that every image has, where images may have several labels."""
        if self.labels_per_image is None or not self.images:
            return ()
        return tuple(name for name, count in self.counts.items() if count == self.images)

    @property
    def labels_line(self) -> str | None:
        """How many labels images have, in words; None where each has one."""
        found = self.labels_per_image
        if not found:
            return None
        mean = sum(labels * images for labels, images in found.items()) / self.images
        span = f"{min(found)} to {max(found)}" if len(found) > 1 else str(min(found))
        line = f"{span} labels per image, {mean:.1f} on average"
        return line + (f"; {found[0]:,} images have none" if 0 in found else "")


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    data: str
    """The set, as given."""
    splits: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]
    """Problems of single images, in the order of the set."""
    duplicates: tuple[DuplicateGroup, ...]
    """The gravest first."""
    passed_over: tuple[str, ...]
    """Files beside the images that are not read."""
    excluded: tuple[tuple[str, str], ...]
    """Name and reason of every image to leave out; what ``--fix`` writes."""
    hints: tuple[str, ...]
    """Advice for training on this set, one line each."""
    seconds: float
    shared_groups: tuple[str, ...] = ()
    """Groups with images in train and in val."""

    @property
    def images(self) -> int:
        """Images in all splits."""
        return sum(split.images for split in self.splits)

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind was found: images, groups of copies, or classes missing in a split."""
        found: Counter[str] = Counter(finding.kind for finding in self.findings)
        found.update(kind for group in self.duplicates for kind in group.kinds)
        found["passed_over"] = len(self.passed_over)
        found["shared_group"] = len(self.shared_groups)
        found["missing_class"] = sum(len(split.missing) for split in self.splits)
        found["constant_class"] = sum(len(split.constant) for split in self.splits)
        return {kind: found[kind] for kind in MEANINGS}

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not any(self.counts.values())

    def examples(self, kind: str) -> list[str]:
        """Return one line per occurrence of a kind."""
        if kind == "missing_class":
            return [f"{name} in {split.name}" for split in self.splits for name in split.missing]
        if kind == "constant_class":
            return [f"{name} in {split.name}" for split in self.splits for name in split.constant]
        if kind == "passed_over":
            return list(self.passed_over)
        if kind == "shared_group":
            return list(self.shared_groups)
        if kind in ("leak", "conflict", "redundant"):
            return [_in_one_line(group) for group in self.duplicates if kind in group.kinds]
        return [f"{found.image.name}: {found.detail}" for found in self.findings if found.kind == kind]

    def to_json(self) -> str:
        """Return everything as one JSON object."""
        content = {
            "data": self.data,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "counts": self.counts,
            "splits": [
                asdict(split)
                | {
                    "ratio": split.ratio and round(split.ratio, 3),
                    "missing": split.missing,
                    "constant": split.constant,
                }
                for split in self.splits
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "duplicates": [asdict(group) for group in self.duplicates],
            "passed_over": self.passed_over,
            "shared_groups": self.shared_groups,
            "excluded": [{"name": name, "reason": reason} for name, reason in self.excluded],
            "hints": self.hints,
        }
        return json.dumps(content, ensure_ascii=False, indent=2)


def _in_one_line(group: DuplicateGroup, *, most: int = 3) -> str:
    names = [image.name for image in group.images]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (" = " if group.exact else " ~ ").join(names[:most]) + more


def balance_hints(train: SplitSummary) -> tuple[str, ...]:
    """Advise what to do about classes of very different size in the training split."""
    if train.ratio is None or train.ratio <= MOST_IMBALANCED:
        return ()
    times = f"{train.ratio:.0f} times the images of the smallest"
    name = "sampling" if train.labels_per_image is None else "class_weights"
    return (f"the largest class of train has {times}: train with {option(name, 'balanced')}",)
