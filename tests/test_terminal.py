"""Nothing is wrapped by a terminal: a line that is too long is shortened or broken between words."""

import os
import re
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from command_line import TINY, class_folders, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the terminals of Unix")

CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
LONG = "a study with a rather long name/of_photographs_that_were_taken_in_the_spring_of_the_year_before_last"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = class_folders(tmp_path_factory.mktemp("terminal") / LONG, African_wild_dog=12, blue=12)
    (root / "blue" / "an image with a long name that is none.jpg").write_bytes(b"x")
    return root


@pytest.fixture(scope="module")
def model(images: Path) -> Path:
    folder = images.parent / "runs" / "one_of_the_many_runs_of_this_study_with_this_set_of_images"
    assert run("train", f"--data={images}", *TINY, "--max_broken=0.3", f"--output={folder}").status == 0
    return folder


def shown(columns: int, *arguments: object, status: int) -> list[str]:
    """What a terminal shows of a command in the end, line by line."""
    from terminal import run_on_terminal

    done = run_on_terminal(columns, *arguments)
    assert done.status == status, done.out
    lines = [CONTROL.sub("", line).split("\r")[-1] for line in done.out.splitlines()]
    lines = [line for line in lines if not line.startswith("reading images")]  # a bar knows the real terminal
    assert max(map(cell_len, lines)) <= columns, done.out
    return lines


@pytest.fixture(params=[60, 80])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.delenv("COLUMNS", raising=False)
    return int(request.param)


def test_errors(columns: int, images: Path, model: Path) -> None:
    for arguments in (
        ["train", f"--data={images}s"],
        ["train", f"--data={images}", *TINY, f"--output={images.parent}"],
        ["train", f"--resume={images}"],
        ["evaluate", model, f"--data={images.parent}"],
        ["check", images.parent / "runs"],
        ["predict", images / "blue" / "1.png", model],
        ["export", model, "--format=onix"],
        ["report", images],
        ["benchmark", images],
        ["models", "--nothing"],
    ):
        lines = shown(columns, *arguments, status=2)
        first = next(number for number, line in enumerate(lines) if line.startswith("error: "))
        assert all(line.startswith("  ") for line in lines[first + 1 :]), "a hanging indent"


def test_a_run_and_what_follows(
    columns: int, images: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command is broken as shells have it; only what it names may be longer than a line."""
    monkeypatch.chdir(tmp_path)
    output = "runs/a_name_that_leaves_no_room_beside_it"
    lines = shown(
        columns, "train", f"--data={images}", *TINY, "--max_broken=0.3", f"--output={output}", status=0
    )
    data = "".join(lines[: lines.index(next(line for line in lines if line.startswith("images: ")))])
    assert data.startswith("data: ") and ("…" in data) == (columns == 60) and data.endswith("before_last")
    at = next(number for number, line in enumerate(lines) if line.startswith("next: "))
    command = "\n".join(lines[at:-1])
    assert command.replace(" \\\n  ", " ") == f"next: conformer-vision predict {output} IMAGE"
    for arguments, status in (
        (["evaluate", model, f"--data={images}"], 0),
        (["check", images, "--workers=1"], 1),
        (["predict", model, images], 1),
        (["models"], 0),
        (["export", model, "--format=folded", f"--output={tmp_path / 'folded.safetensors'}"], 0),
    ):
        shown(columns, *arguments, status=status)


def test_a_pipe_gets_every_line_whole(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    done = run("train", f"--data={images}s")
    assert done.err.count("\n") == 1
    assert f"{images}s does not exist" in done.err
    assert os.path.basename(images) in done.err


@pytest.mark.parametrize("columns", [20, 33])
def test_very_narrow(columns: int, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that is given counts."""
    monkeypatch.setenv("COLUMNS", str(columns))
    from terminal import run_on_terminal

    done = run_on_terminal(80, "predict", images / "nothing.jpg")
    assert max(map(cell_len, done.out.splitlines())) <= columns
