"""The examples in README and docs: Python blocks run, commands are ones that the command line takes."""

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from command_line import NETWORK
from conformer_vision import TrainConfig, cli
from conformer_vision.commands import train
from conformer_vision.errors import UserError
from exports import WITH_EXPORTS, make_run, shared_graphs

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


WITH_PYTHON = [
    pytest.param(page, id=page.name, marks=WITH_EXPORTS if page.name == "export.md" else [])
    for page in PAGES
    if blocks(page, "python")
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page build on each other. Networks that they train are narrower here."""
    monkeypatch.chdir(tmp_path)
    from_options = TrainConfig.from_options
    monkeypatch.setattr(TrainConfig, "from_options", partial(from_options, model_kwargs=NETWORK))
    Image.new("RGB", (48, 40), "white").save("holiday.jpg")
    Path("runs").mkdir()
    make_run(Path("runs/photos"))
    namespace: dict[str, object] = {"__name__": "example"}
    with shared_graphs():
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
PARSER, SUBPARSERS = cli.build_parsers()


def commands(page: Path) -> list[str]:
    """The command lines of ``conformer-vision`` in a page, without redirections."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [re.split(r" [|>&]", line)[0] for line in lines if line.startswith("conformer-vision ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_are_accepted(page: Path) -> None:
    """Parsed with all their values; no file that they name has to exist."""
    for line in commands(page):
        arguments = shlex.split(line, comments=True)[1:]
        if arguments[:2] == ["train", "--resume"]:
            assert len(arguments) == 3, line
            continue
        if arguments[0] in ("train", "lr-find"):
            arguments = train.with_recipe_first(arguments)
        try:
            PARSER.parse_args(arguments)
        except UserError as error:
            pytest.fail(f"{page.name}: {line}: {error}")


@pytest.mark.parametrize(
    ("page", "subcommand"),
    [
        ("training.md", "train"),
        ("predict.md", "evaluate predict"),
        ("unsure.md", "evaluate predict"),
        ("explain.md", "explain localize predict"),
        ("serving.md", "serve predict"),
    ],
)
def test_flags_in_the_text_exist(page: str, subcommand: str) -> None:
    flags = {
        flag
        for name in subcommand.split()
        for action in SUBPARSERS[name]._actions
        for flag in action.option_strings
    }
    text = BLOCK.sub("", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    for flag in FLAG.findall(" ".join(re.findall(r"`([^`]+)`", text))):
        assert flag in flags or flag.startswith("--model_kwargs."), f"{page}: no flag {flag}"
