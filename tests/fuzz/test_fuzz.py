"""A small share of the fuzz run, and that the run sees what it looks for; in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
FOLDER = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

BAD = """
import sys
from pathlib import Path
from watch import DefectError, Harness

def hang():
    while True:
        pass

def noisy():
    print("one\\ntwo", file=sys.stderr)
    return 1

def lost():
    raise DefectError("lost")

def greedy():
    bytearray(b"x") * (5 << 29)

import conformer_vision.cli
harness = Harness(Path(sys.argv[1]), seconds=1)
harness.attempt("hang", "1", hang, inputs=None)
harness.attempt("bug", "1", lambda: {}["missing"], inputs=None)
harness.attempt("lost", "1", lost, inputs=None)
harness.attempt("greedy", "1", greedy, inputs=None, times=60)
for name, main in {"noisy": lambda a: noisy(), "status": lambda a: 3, "quiet error": lambda a: 2}.items():
    conformer_vision.cli.main = main
    harness.attempt(name, "1", lambda: harness.command("x"), inputs=None)
conformer_vision.cli.main = lambda a: print("error: no such file", file=sys.stderr) or 2
harness.attempt("refused", "1", lambda: harness.command("x"), inputs=None)
for name, row in harness.rows.items():
    print(f"{name}: {' '.join(row.defects[0].split())[:90] if row.defects else 'none'}")
"""


def test_a_small_share_has_no_defects(tmp_path: Path) -> None:
    keep = tmp_path / "defects"
    command = [sys.executable, FOLDER / "run.py", "--count=40", "--seed=7", "--keep", keep]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("40 inputs, ")
    assert ", 0 defects, " in done.stdout
    assert not keep.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is watched on Linux only")
def test_defects_are_seen(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BAD, tmp_path],
        capture_output=True,
        text=True,
        timeout=110,
        env=ENVIRONMENT | {"PYTHONPATH": str(FOLDER)},
    )
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert found["hang"] == "1: takes longer than 1 s"
    assert found["bug"].startswith("1: Traceback")
    assert found["lost"] == "1: lost"
    assert found["greedy"].startswith("1: takes 25")
    assert found["noisy"] == "1: exit status 1 with unexpected lines: one | two"
    assert found["status"].startswith("1: exit status 3")
    assert found["quiet error"].startswith("1: exit status 2 with 0 lines")
    assert found["refused"] == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bug", "greedy", "hang", "lost", "noisy", "quiet-error", "status"
    ]  # fmt: skip
