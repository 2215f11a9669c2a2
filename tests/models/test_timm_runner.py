"""``python -m conformer_vision.timm SCRIPT`` runs the script as Python does, with the models registered."""

import subprocess
import sys
from pathlib import Path

import pytest

from conformer_vision.timm import main

SCRIPT = """
import multiprocessing, pickle, sys
import beside

class Thing:
    pass

def build(name):
    import timm
    return type(timm.create_model(name, device="meta")).__name__

if __name__ == "__main__":
    pickle.loads(pickle.dumps(Thing()))  # of the module "__main__"
    print(sys.argv, __file__, sys.path[0], build("conformer_nano_patch8_64"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(build, ("conformer_nano_patch8_64",)))
    sys.exit(3)
"""


def test_script_runs_as_under_python(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "beside.py").touch()
    (scripts / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "conformer_vision.timm", "scripts/script.py", "--model", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    first, second = done.stdout.splitlines()
    assert first == f"['scripts/script.py', '--model', 'x'] scripts/script.py {scripts.resolve()} Conformer"
    assert second == "Conformer"  # in a spawned process
    assert done.returncode == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "usage: python -m conformer_vision.timm"),
        (("no.py",), "error: cannot read the script no.py (No such"),
    ],
)
def test_mistake_is_one_line(
    arguments: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["conformer_vision/timm.py", *arguments])
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1
