"""The door of printed text: any encoding, any terminal, and nobody who reads it."""

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from conformer_vision import console

NAMES = ("猫", "собака", "Ærø", "naïve …", "🦆", "a\nb\x1b[2J", os.fsdecode(b"\xff.png"))
"""What classes and files may be called; the last is no text at all."""


def printed(function: object, *arguments: object, encoding: str = "utf-8") -> str:
    """What a function of the door prints to stdout in an encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    before, sys.stdout = sys.stdout, stream
    try:
        function(*arguments)  # type: ignore[operator]
    finally:
        sys.stdout = before
    return stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii", "koi8-r", "gbk", "cp437"])
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_name_in_every_encoding(name: str, encoding: str) -> None:
    line = printed(console.say, name, encoding=encoding)
    assert line.endswith("\n") and line[:-1].isprintable(), "one line, without control characters"
    assert printed(console.emit, json.dumps(name), encoding=encoding)
    text = printed(console.emit, json.dumps(name, ensure_ascii=False), encoding=encoding)
    assert json.loads(text) == name, "JSON stays JSON"
    table = printed(console.show_table, ("class", "n"), [(name, "1")], encoding=encoding)
    assert [row.split()[-1] for row in table.splitlines()[::2]] == ["n", "1"]


def test_a_closed_or_full_stdout_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    gone = os.fdopen(writing, "w")
    closed = io.StringIO()
    closed.close()
    for stream in (gone, closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("lost")


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_tables_fit_and_keep_the_names_of_files(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    folder = "/data/projects/2026/a study with a long name/images/train/class number one"
    rows = [(f"{folder}/IMG_{number:04d}.jpg: the file is empty\nand 7 more", "9,999") for number in range(9)]
    lines = printed(console.show_table, ("examples", "count"), rows).splitlines()
    assert max(map(len, lines)) <= columns
    assert len(lines) == 2 + 2 * len(rows)
    for number in range(9):
        assert f"IMG_{number:04d}.jpg: the file is empty" in lines[2 + 2 * number]


@pytest.mark.parametrize(
    "path", ["photos/animals/cats/tabby.jpg", "资料/猫/虎斑猫的照片/第一张.jpg", "a" * 50]
)
@pytest.mark.parametrize("columns", [12, 20, 30, 60])
def test_a_path_is_shortened_in_the_middle(path: str, columns: int) -> None:
    short = console.shorten(path, columns)
    cells = sum(2 if unicodedata.east_asian_width(char) == "W" else 1 for char in short)
    assert cells <= columns
    if short != path:
        start, end = short.split("…")
        assert path.startswith(start) and path.endswith(end)
    if columns >= 20 and "/" in path:
        assert short.endswith(Path(path).name)


PROGRAM = """
import sys
from conformer_vision import console
console.open_streams()
for number in range(2_000):
    print("x" * 80)  # as a library does
    console.note("y")
print(type(console.lost()).__name__, file=sys.__stderr__)
with open("file", "w") as file:
    print(file.fileno(), file=sys.__stderr__)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "lost", "descriptor"),
    [
        ("2>err | head -n 1", "BrokenPipeError", 3),
        (">/dev/full 2>err", "OSError", 3),
        ("2>err >&- <&-", "NoneType", 3),
    ],
)
def test_a_library_that_prints_does_not_end_the_command(
    redirection: str, lost: str, descriptor: int, unbuffered: str, tmp_path: Path
) -> None:
    """Nor does a file that the command opens take the place of a closed stdout."""
    command = f"{sys.executable} -c '{PROGRAM}' {redirection}; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, timeout=60, check=False)
    lines = (tmp_path / "err").read_text().splitlines()
    assert (done.returncode, lines[-2:]) == (0, [lost, str(descriptor)])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
@pytest.mark.parametrize(("arguments", "status"), [("models", 2), ("models --json", 2), ("--version", 0)])
def test_a_result_that_cannot_be_written_is_an_error(arguments: str, status: int) -> None:
    """Not so where argparse prints and ends, nor for `train`, whose result is a folder."""
    command = [sys.executable, "-m", "conformer_vision", *arguments.split()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    line = "error: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (status, line if status else "")
