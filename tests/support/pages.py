"""HTML pages, read as a browser reads them."""

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input", "use"}


class Page(HTMLParser):
    """A page's elements and text; fails where a tag is not closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self._words).split())
        self.tags = Counter(tag for tag, _ in self.elements)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self._words.append(data)

    def values(self, name: str) -> list[str]:
        """The values of an attribute, in the order of the page."""
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]

    def check_complete(self) -> None:
        """Nothing comes from elsewhere, nothing can run, no id is there twice, every link leads to one."""
        assert self.source.lower().startswith("<!doctype html>")
        assert not self.tags.keys() & {"script", "iframe", "object", "embed"}
        assert not any(name.startswith("on") for _, attributes in self.elements for name in attributes)
        assert any("default-src 'none'" in value for value in self.values("content"))
        assert "@import" not in self.source
        ids = self.values("id")
        assert len(set(ids)) == len(ids)
        targets = re.findall(r"url\((.*?)\)", self.source)
        targets += [target for name in ("href", "xlink:href", "src") for target in self.values(name)]
        targets = [target for target in targets if not target.startswith("data:")]
        assert set(targets) <= {f"#{name}" for name in ids}
        assert all("alt" in attributes for tag, attributes in self.elements if tag == "img")
        assert all(attributes.get("aria-label") for tag, attributes in self.elements if tag == "svg")
        assert set(self.values("popovertarget")) <= set(ids)
        levels = [int(tag[1]) for tag, _ in self.elements if tag in ("h1", "h2", "h3", "h4")]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(below <= level + 1 for level, below in pairwise(levels)), "a heading leaves a level out"
