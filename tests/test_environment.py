"""Where caches go without a home, with a read-only one, as an unknown user, under a notebook's settings."""

import getpass
import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conformer_vision import environment
from conformer_vision.environment import cache_folder, prepare_process
from conformer_vision.errors import UserError

VARIABLES = ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "MPLBACKEND", "TORCH_HOME", "HF_HUB_CACHE", "LOGNAME")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; the variables are as they were afterwards."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def make_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for root, whom permissions do not stop."""
    access, inside = os.access, str(folder)

    def refuse(path: str | Path, mode: int) -> bool:
        return not (mode & os.W_OK and str(path).startswith(inside)) and access(path, mode)

    monkeypatch.setattr(os, "access", refuse)


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert cache_folder() == home / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == home / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "given"))
    assert cache_folder() == tmp_path / "given"


@pytest.mark.parametrize("home", ["missing", "read-only", "relative", "unknown", "file"])
def test_without_a_home_it_is_a_folder_of_the_user_alone(
    home: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / home
    monkeypatch.setenv("HOME", "somewhere" if home == "relative" else str(path))
    if home == "file":
        path.touch()
    if home == "read-only":
        path.mkdir()
        make_read_only(path, monkeypatch)
    if home == "unknown":
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    folder = cache_folder()
    assert folder.parent == temporary and cache_folder() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    prepare_process()
    assert os.environ["XDG_CACHE_HOME"] == str(folder)
    assert os.environ["MPLCONFIGDIR"] == str(folder / "matplotlib")
    assert "TORCH_HOME" not in os.environ
    assert os.environ["HOME"] == (str(folder) if home in ("relative", "unknown") else str(path))


def test_weights_in_a_read_only_cache_are_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tmp_path / "home" / ".cache" / "torch"
    held.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make_read_only(tmp_path / "home", monkeypatch)
    prepare_process()
    assert os.environ["TORCH_HOME"] == str(held)
    assert "HF_HUB_CACHE" not in os.environ


def test_a_folder_that_somebody_else_can_write_is_not_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    folder = cache_folder()
    folder.chmod(0o777)
    assert cache_folder() != folder
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert cache_folder() != folder


def test_no_folder_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "missing"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"no folder for caches can be written .*; set XDG_CACHE_HOME to one"):
        cache_folder()
    prepare_process()  # most commands need none
    assert "XDG_CACHE_HOME" not in os.environ


def test_an_unknown_user_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr(environment.getpass, "getuser", unknown)
    prepare_process()
    monkeypatch.undo()
    monkeypatch.setenv("LOGNAME", str(os.getuid()))
    assert getpass.getuser() == str(os.getuid())


DRAW = """
import os, sys
from conformer_vision.environment import prepare_process
prepare_process()
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.savefig(sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "TkAgg"])
def test_drawing_needs_neither_a_home_nor_the_backend_of_a_notebook(backend: str, tmp_path: Path) -> None:
    variables = {"MPLBACKEND": backend, "HOME": str(tmp_path / "missing"), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", DRAW, tmp_path / "plot.png"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | variables, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "temporary cache directory" not in done.stderr
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="a folder in use cannot be removed")
def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    """Libraries of torch end the process there."""
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir ../gone; exec {shlex.quote(sys.executable)} -m conformer_vision predict {tmp_path}"
    done = subprocess.run(["sh", "-c", command], cwd=gone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the working folder has been removed; change to another one (cd)\n"
