"""The subcommand: what it prints, its exit status, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformer_vision.commands import check as command
from conformer_vision.errors import UserError
from image_sets import write_folders


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of three different images each."""
    return write_folders(tmp_path / "set", {"[cat]": 3, "dog": 3}, size=(32, 32))


def run(*arguments: object) -> int:
    parser = command.build_parser()
    return command.run(parser.parse_args([str(argument) for argument in arguments]), parser)


def test_nothing_found(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(images, "--workers=1") == 0
    out, err = capsys.readouterr()
    assert out.startswith("6 images (train 4, val 2) read in ")
    assert "nothing found\n" in out
    assert "train: 2 classes of 2 to 2 images, ratio 1.0\n" in out
    assert err == ""


def test_something_found(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "[cat]/9.png").write_bytes(b"")
    page, fix = tmp_path / "page.html", tmp_path / "list.csv"
    assert run(images, "--workers=1", "--page", page, "--fix", fix) == 1
    out, _ = capsys.readouterr()
    assert "broken" in out
    assert "[cat]/9.png: the file is empty" in out, "the brackets are no markup"
    assert f"page: {page}\n" in out
    assert f"exclusion list: {fix} (1 images)\n" in out
    assert page.read_text().lower().startswith("<!doctype html>")
    assert f"{images / '[cat]/9.png'},broken: the file is empty" in fix.read_text()


def test_json_is_one_object(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(images, "--workers=1", "--json", "--min_size=33") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["counts"]["tiny"] == 6
    assert content["data"] == str(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here"], "nothing-here does not exist"),
        (["digits", "--workers=0"], "workers 0"),
        (["digits", "--fix_duplicates=true"], "--fix_duplicates needs --fix CSV"),
        (["digits", "--distance=x"], "distance x: must be a whole number"),
        (["digits", "--splt=val"], "unknown option --splt"),
        ([], "data is missing"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(*arguments)


SCRIPT = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
from conformer_vision.commands import check as command
from conformer_vision.data.base import ImageSource
import conformer_vision.check.run as run

class Endless(ImageSource):
    def __init__(self, split): super().__init__(("a", "b"), [0] * 10); self.split = split
    def name(self, index): return str(index)
    def image(self, index, need=None):
        print(self.split, "image", flush=True)
        threading.Event().wait()

if __name__ == "__main__":
    run.open_images = lambda data, split, *_, **__: Endless(split)
    parser = command.build_parser()
    try:
        command.run(parser.parse_args(sys.orig_argv[2:]), parser)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs process groups")
def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    script, page = tmp_path / "script.py", tmp_path / "page.html"
    script.write_text(SCRIPT)
    page.write_text("as it was")
    process = subprocess.Popen(
        [sys.executable, script, "x", "--workers=2", f"--page={page}", f"--fix={tmp_path / 'list'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the whole group, the readers included
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("image\n")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=20)  # ends when the readers have, which share stdout
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (process.returncode, err) == (130, ""), out
    assert page.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "script.py"]
