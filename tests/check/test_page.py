"""The page, read as a browser reads it."""

from pathlib import Path
from typing import Any

import pytest

from conformer_vision.check import CheckResult, DuplicateGroup, Finding, ImageRef, SplitSummary, check
from conformer_vision.check.page import images_shown, write_page
from conformer_vision.errors import UserError
from pages import Page

EVIL = "<script>alert('x')</script>\"'&"


def result_with(
    findings: list[Finding], duplicates: list[DuplicateGroup], counts: dict[str, int] | None = None
) -> CheckResult:
    split = SplitSummary("train", 9, counts or {"cat": 6, EVIL: 3})
    return CheckResult("data", (split,), tuple(findings), tuple(duplicates), (), (), ("a <hint>",), 1.0)


def test_a_checked_set(bad: Any, tmp_path: Path) -> None:
    result = check(bad.root, workers=1, page=tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    page.check_complete()
    sources = page.values("src")
    assert all(source.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for source in sources)
    images = [*result.findings, *(image for group in result.duplicates for image in group.images)]
    assert page.tags["article"] == len(images)
    assert len(sources) == len(images) - 3, "all but the broken and the gigantic ones"
    kinds = [attributes["id"] for tag, attributes in page.elements if tag == "section" and "id" in attributes]
    assert kinds == [kind for kind, count in result.counts.items() if count]
    assert [link for link in page.values("href") if link != "data:,"] == [f"#{kind}" for kind in kinds]
    assert "train/<script>alert(1)/conflict.png" in page.text
    assert str(bad.root / "train") not in page.text, "names are shown below the root"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_nothing_found(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", result_with([], []), {})
    assert "Nothing was found." in Page(tmp_path / "page.html").text


def test_names_cannot_run(tmp_path: Path) -> None:
    evil = ImageRef(f"data/{EVIL}", "train", EVIL)
    result = result_with(
        [Finding("broken", evil, EVIL)], [DuplicateGroup(("leak", "conflict"), True, (evil, evil))]
    )
    write_page(tmp_path / "page.html", result, {})
    page = Page(tmp_path / "page.html")
    page.check_complete()
    assert page.tags["hint"] == 0
    assert page.text.count(EVIL) >= 6


def test_much_is_cut_short(tmp_path: Path) -> None:
    many = [ImageRef(f"data/{number}.png", "train", "cat") for number in range(100)]
    held_out = ImageRef("data/val.png", "val", "cat")
    result = result_with(
        [Finding("tiny", image, "3 × 3 pixels") for image in many],
        [
            DuplicateGroup(("leak",), True, (*many, held_out)),
            *[DuplicateGroup(("leak",), True, (many[0], held_out))] * 40,
        ],
        {f"class {number}": number + 1 for number in range(1000)},
    )
    shown = images_shown(result)
    assert held_out in shown
    assert len(shown) == 25
    write_page(tmp_path / "page.html", result, {})
    page = Page(tmp_path / "page.html")
    assert "and 76 more" in page.text
    assert "and 17 more groups" in page.text
    assert "and 95 more" in page.text, "of the large group"
    assert "960 more classes" in page.text
    assert page.values("style").count("width: 100.0%") == 1
    assert page.tags["article"] == 24 + 6 + 23 * 2


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    write_page(
        tmp_path / "page.html",
        result_with([Finding("broken", ImageRef("data/caf\udce9.jpg", "train", "cat"), "bad")], []),
        {},
    )
    assert "caf\\udce9.jpg" in Page(tmp_path / "page.html").text


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_page(tmp_path / "no" / "page.html", result_with([], []), {})


def test_a_missing_class_is_listed(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", result_with([], [], {"cat": 5, "dog": 0}), {})
    page = Page(tmp_path / "page.html")
    assert "dog in train" in page.text
