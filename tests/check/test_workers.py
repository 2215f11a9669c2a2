"""Processes that items may kill, stop, or that cannot even be started."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import deadly
import pytest

from conformer_vision.check.workers import Lost, WorkerPool


def test_every_item_is_done_once_and_the_processes_end() -> None:
    with WorkerPool(3, workers=2, timeout=60) as pool:
        found = list(pool.map(deadly.double, range(150)))
        assert sorted(pool.map(deadly.double, [1, 2])) == [(1, 3), (2, 6)], "the processes are used again"
        assert len(multiprocessing.active_children()) >= 2
        assert list(pool.map(deadly.double, [])) == []
        assert next(pool.map(deadly.double, range(100, 200)))[1] >= 300
        assert list(pool.map(deadly.double, [7])) == [(7, 21)], "not the answers of the unfinished iteration"
    assert sorted(found) == [(item, 3 * item) for item in range(150)]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("function", "item", "reason"),
    [
        (deadly.die_on_7, 7, "it ends the reading process (SIGSEGV)"),
        (deadly.leave_on_3, 3, "it ends the reading process"),
        (deadly.hang_on_2, 2, "reading it takes longer than 0.5 seconds"),
    ],
)
def test_only_the_item_that_ends_its_process_is_lost(function: object, item: int, reason: str) -> None:
    with WorkerPool(2, workers=1, timeout=0.5) as pool:
        found = dict(pool.map(function, range(70)))  # type: ignore[arg-type]
    assert found.pop(item) == Lost(reason)
    assert found == {number: 2 * number for number in range(70) if number != item}


def test_a_mistake_in_the_function_is_raised() -> None:
    with WorkerPool(1, workers=1, timeout=60) as pool, pytest.raises(ZeroDivisionError):
        list(pool.map(deadly.fail, range(3)))
    assert multiprocessing.active_children() == []


def test_a_script_without_a_guard_gets_one_line(tmp_path: Path, clean: Path) -> None:
    script = tmp_path / "script.py"
    lines = [
        "import conformer_vision_command  # so that the test does not wait for torch",
        "from conformer_vision.check import check",
        f"check({str(clean)!r}, workers=1)",
    ]
    script.write_text("\n".join(lines))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert (
        "UserError: the reading processes cannot be started; in a script, put the call below: if __name__"
        in (done.stderr)
    )
