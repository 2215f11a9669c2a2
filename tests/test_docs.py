"""The examples in README and docs: Python blocks run, commands are ones that the command line takes."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from conformer_vision.cli import SUBCOMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(
    r"(?P<mark><!-- not run: [^>]+ -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language, less those that a comment above says are not run, and why."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [match["text"] for match in found if match["language"] == language and not match["mark"]]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page build on each other."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (48, 40), "white").save("holiday.jpg")
    namespace: dict[str, object] = {"__name__": "example"}
    for number, text in enumerate(blocks(page, "python"), start=1):
        exec(compile(text, f"{page.name}, Python block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / match["path"]).resolve() if match["path"] else page
        assert target.exists(), f"{page.name} links to {match['path']}, which is not there"
        if match["anchor"]:
            assert match["anchor"] in anchors(target), f"{page.name} links to {match[0]}, an unknown heading"


FLAG = re.compile(r"--[a-z][\w.]*")


@cache
def flags_of(subcommand: str) -> frozenset[str]:
    """The flags that the subcommand's help lists."""
    every = ["all"] if subcommand in ("train", "lr-find") else []
    command = [sys.executable, "-m", "conformer_vision", subcommand, "--help", *every]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return frozenset(FLAG.findall(done.stdout))


def known(flag: str, flags: frozenset[str]) -> bool:
    """Whether a flag, or the mapping that a dotted flag sets a key of, is among `flags`."""
    return flag in flags or flag.rpartition(".")[0] == "--model_kwargs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_shown(page: Path) -> None:
    for line in "".join(blocks(page, "bash")).splitlines():
        if line.startswith("conformer-vision "):
            subcommand = line.split()[1]
            assert subcommand in SUBCOMMANDS, line
            for flag in FLAG.findall(line):
                assert known(flag, flags_of(subcommand)), f"{page.name}: {line}: no flag {flag}"


@pytest.mark.parametrize(
    ("page", "subcommand"), [("training.md", "train"), ("predict.md", "evaluate predict")]
)
def test_flags_in_the_text_exist(page: str, subcommand: str) -> None:
    flags = frozenset().union(*map(flags_of, subcommand.split()))
    text = BLOCK.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    for flag in FLAG.findall(" ".join(re.findall(r"`([^`]+)`", text))):
        assert known(flag, flags) or flag == "--help", f"{page}: no flag {flag}"
