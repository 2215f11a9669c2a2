"""Check a whole set: read every image in parallel, then compare copies and count classes."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from conformer_vision.data.base import ImageSource, class_counts, classes_of
from conformer_vision.data.exclude import write_exclusions
from conformer_vision.data.groups import shared_groups
from conformer_vision.data.images import MAX_PIXELS
from conformer_vision.data.opening import open_images, require_source
from conformer_vision.data.splits import Split, Splitting
from conformer_vision.errors import UserError

from .duplicates import MAX_DISTANCE, Copies, find_copies
from .exclusions import exclusions
from .inspect import THUMBNAIL_EDGE, ImageReader, Inspection, Limits, inspect_image, page_thumbnail
from .page import images_shown, write_page
from .result import MEANINGS, CheckResult, DuplicateGroup, Finding, ImageRef, SplitSummary, balance_hints
from .workers import Lost, WorkerPool

Progress = Callable[[int, int], None]
"""Called with the number of images read so far, and of all images."""

_SPLITS: tuple[Split, ...] = ("train", "val")
_UNREADABLE = ("broken", "truncated", "gigantic")
"""Kinds of finding after which training cannot read the image."""


def check(
    data: str | Path,
    *,
    splitting: Splitting = Splitting(),  # noqa: B008  # immutable
    data_dir: str | Path | None = None,
    workers: int | None = None,
    min_size: int = 8,
    max_pixels: int = 50_000_000,
    distance: int = 4,
    timeout: float = 60.0,
    page: str | Path | None = None,
    fix: str | Path | None = None,
    fix_duplicates: bool = False,
    progress: Progress | None = None,
) -> CheckResult:
    """Read every image of a set, and report what would harm training or evaluation.

    Images are decoded in separate processes, so an image that crashes or stalls its decoder is only a
    finding. In a script, call this below ``if __name__ == "__main__":``.

    Args:
        data: as in `open_images`; both train and val are read.
        splitting: how to split a set without a split of its own.
        data_dir: where named sets are stored, as in `open_images`.
        workers: reading processes; one per core if None.
        min_size: pixels of the short edge below which an image is tiny.
        max_pixels: pixels (height × width), according to the header, above which an image is not decoded.
        distance: bits (of 64) by which perceptual hashes of near duplicates may differ, 0 to 8.
        timeout: seconds after which an image counts as broken.
        page: self-contained HTML file to write.
        fix: exclusion list to write; training leaves those images out.
        fix_duplicates: also list further copies of a training image within its class.
        progress: called after every image.

    Raises:
        UserError: as `open_images`, an invalid value, or a file that cannot be written.
    """
    began = time.monotonic()
    _check_values(workers, min_size, max_pixels, distance, timeout)
    for path in (page, fix):
        if path is not None:
            _check_writable(Path(path))
    parts = {
        name: require_source(open_images(data, name, splitting, data_dir=data_dir), name=data)
        for name in _SPLITS
    }
    reader = ImageReader(list(parts.values()), Limits(min_size=min_size, max_pixels=max_pixels))
    with WorkerPool(reader, workers=workers or _cores(), timeout=timeout) as pool:
        survey = _Survey(reader)
        for done, (number, inspection) in enumerate(pool.map(inspect_image, range(len(reader))), start=1):
            survey.add(number, inspection)
            if progress is not None:
                progress(done, len(reader))
        copies = find_copies(survey.digests, survey.hashes, survey.thumbnails, distance=distance)
        passed_over = dict.fromkeys(name for source in parts.values() for name in source.passed_over)
        summaries = tuple(_summary(name, source) for name, source in parts.items())
        result = CheckResult(
            data=str(data),
            splits=summaries,
            findings=survey.findings(),
            duplicates=survey.groups(copies),
            passed_over=tuple(passed_over),
            shared_groups=tuple(shared := shared_groups(parts["train"], parts["val"])),
            excluded=survey.exclusions(copies, redundant=fix_duplicates, shared=frozenset(shared)),
            hints=balance_hints(summaries[0]),
            seconds=time.monotonic() - began,
        )
        if page is not None:
            numbers = [survey.numbers[image] for image in images_shown(result)]
            found = pool.map(page_thumbnail, numbers)
            write_page(page, result, {survey.image(n): uri for n, uri in found if isinstance(uri, str)})
    if fix is not None:
        write_exclusions(fix, result.excluded)
    return result


class _Survey:
    """What is known about every image, by number."""

    def __init__(self, reader: ImageReader) -> None:
        self._reader = reader
        self._problems: dict[int, Sequence[tuple[str, str]]] = {}
        self.digests: list[bytes | None] = [None] * len(reader)
        self.hashes = np.zeros(len(reader), np.uint64)
        self.thumbnails = np.zeros((len(reader), THUMBNAIL_EDGE**2), np.uint8)
        self.numbers: dict[ImageRef, int] = {}

    def add(self, number: int, inspection: Inspection | Lost) -> None:
        if isinstance(inspection, Lost):
            inspection = Inspection([("broken", inspection.reason)])
        if inspection.problems:
            self._problems[number] = inspection.problems
        if inspection.fingerprint is not None:
            self.digests[number], self.hashes[number], thumbnail = inspection.fingerprint
            self.thumbnails[number] = np.frombuffer(thumbnail, np.uint8)

    def image(self, number: int) -> ImageRef:
        part, index = self._reader.place(number)
        source = self._reader.sources[part]
        classes = [source.classes[each] for each in classes_of(source.labels[index])]
        image = ImageRef(source.name(index), _SPLITS[part], "|".join(classes) or "no label")
        self.numbers[image] = number
        return image

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(kind, self.image(number), detail)
            for number in sorted(self._problems)
            for kind, detail in self._problems[number]
        )

    def groups(self, copies: Copies) -> tuple[DuplicateGroup, ...]:
        groups = []
        for group in copies.groups:
            images = tuple(self.image(number) for number in group)
            kinds = []
            if len({image.split for image in images}) > 1:
                kinds.append("leak")
            if len({image.label for image in images}) > 1:
                kinds.append("conflict")
            exact = len(set(copies.first[list(group)])) == 1
            groups.append(DuplicateGroup(tuple(kinds or ["redundant"]), exact, images))
        gravest = list(MEANINGS)
        return tuple(sorted(groups, key=lambda group: (gravest.index(group.kinds[0]), not group.exact)))

    def exclusions(
        self, copies: Copies, *, redundant: bool, shared: Collection[str]
    ) -> tuple[tuple[str, str], ...]:
        reasons: dict[int, list[str]] = {}
        for number, problems in self._problems.items():
            reasons[number] = [f"{kind}: {detail}" for kind, detail in problems if kind in _UNREADABLE]
        train = self._reader.sources[0]
        for number, group in enumerate(train.groups or ()):
            if group in shared:
                reasons.setdefault(number, []).append(f"its group {group} is in val too")
        for number, reason in exclusions(copies, self.image, redundant=redundant):
            reasons.setdefault(number, []).append(reason)
        return tuple((self.image(n).name, "; ".join(reasons[n])) for n in sorted(reasons) if reasons[n])


def _summary(name: str, source: ImageSource) -> SplitSummary:
    counts = dict(zip(source.classes, class_counts(source).tolist(), strict=True))
    if not source.multilabel:
        return SplitSummary(name, len(source), counts)
    lengths = Counter(len(classes_of(label)) for label in source.labels)
    return SplitSummary(name, len(source), counts, dict(sorted(lengths.items())))


def _check_values(workers: int | None, min_size: int, max_pixels: int, distance: int, timeout: float) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers}: must be 1 or more")
    if min_size < 1:
        raise UserError(f"min_size {min_size}: must be 1 or more; 1 finds nothing tiny")
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise UserError(f"max_pixels {max_pixels}: must be from 1 to {MAX_PIXELS}, the most that is decoded")
    if not 0 <= distance <= MAX_DISTANCE:
        raise UserError(f"distance {distance}: must be from 0 to {MAX_DISTANCE}")
    if not timeout > 0:
        raise UserError(f"timeout {timeout}: must be above 0")


def _check_writable(path: Path) -> None:
    """Fail before the long part if the file cannot be written after it."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}; make it")


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
