"""The result of a check as one self-contained HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from conformer_vision import pages

from .result import MEANINGS, CheckResult, DuplicateGroup, Finding, ImageRef

MOST_SHOWN = 24
"""Images, or groups of copies, shown per kind of finding."""
MOST_IN_GROUP = 6
"""Images shown per group."""
_NAMED = ("missing_class", "constant_class", "passed_over", "shared_group")
"""Kinds of finding that are names without images."""


@dataclass(frozen=True)
class _Section:
    """One kind of finding on the page."""

    kind: str
    title: str
    meaning: str
    count: int
    findings: list[Finding]
    groups: list[tuple[DuplicateGroup, list[ImageRef]]]
    lines: list[str]


def images_shown(result: CheckResult) -> list[ImageRef]:
    """Return the images whose thumbnails the page shows, each once."""
    shown: dict[ImageRef, None] = {}
    for section in _sections(result):
        if section.kind not in ("broken", "gigantic"):  # these do not decode
            shown.update(dict.fromkeys(finding.image for finding in section.findings))
        for _, images in section.groups:
            shown.update(dict.fromkeys(images))
    return list(shown)


def write_page(path: str | Path, result: CheckResult, thumbnails: Mapping[ImageRef, str]) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        result: what was found.
        thumbnails: ``data:`` URIs of the images that `images_shown` returns, as far as there are any.

    Raises:
        UserError: the file cannot be written.
    """
    root = result.data.rstrip(os.sep) + os.sep
    context = {
        "result": result,
        "sections": _sections(result),
        "thumbnails": {image: pages.Thumbnail(image.name, data) for image, data in thumbnails.items()},
        "no_image": pages.Thumbnail("", None),
        "today": date.today(),
    }
    filters = {"short": lambda name: name.removeprefix(root)}
    pages.write_page(path, pages.render(__package__, "page.html.j2", context, filters=filters))


def _sections(result: CheckResult) -> list[_Section]:
    sections = []
    for kind, count in result.counts.items():
        if count:
            title, meaning = MEANINGS[kind]
            findings = [found for found in result.findings if found.kind == kind][:MOST_SHOWN]
            groups = [group for group in result.duplicates if kind in group.kinds][:MOST_SHOWN]
            lines = result.examples(kind)[:MOST_SHOWN] if kind in _NAMED else []
            shown = [(group, _members_shown(group)) for group in groups]
            sections.append(_Section(kind, title, meaning, count, findings, shown, lines))
    return sections


def _members_shown(group: DuplicateGroup) -> list[ImageRef]:
    """Choose the first few, if possible one of every split and class."""
    first: dict[tuple[str, str], ImageRef] = {}
    for image in group.images:
        first.setdefault((image.split, image.label), image)
    different = list(first.values())
    rest = [image for image in group.images if image not in set(different)]
    return (different + rest)[:MOST_IN_GROUP]
