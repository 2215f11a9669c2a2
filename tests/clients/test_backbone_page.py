"""The Python examples of the docs that need the clients; they build on each other within a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clients import WITHOUT

pytest.importorskip("transformers", reason=WITHOUT)

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"(<!-- not run: (?P<why>[^>]+) -->\n)?^```python\n(?P<text>.*?)^```$", re.M | re.S)
ELSEWHERE = {"needs a folder of images; tests/clients/test_lightly_train.py runs it"}


def test_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    blocks = [*BLOCK.finditer((DOCS / "backbone.md").read_text(encoding="utf-8"))]
    run = [block for block in blocks if block["why"] not in ELSEWHERE]
    assert len(run) == len(blocks) - 1 >= 9
    for number, block in enumerate(run, start=1):
        assert block["why"] in (None, "make test-clients runs it")
        exec(compile(block["text"], f"backbone.md, block {number}", "exec"), namespace)
