"""Processes that items may kill, stop, or that cannot even be started."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import deadly
import pytest

from conformer_vision.check.workers import Lost, WorkerPool


def test_every_item_is_done_once_and_the_processes_end() -> None:
    before = set(multiprocessing.active_children())  # those of other tests
    with WorkerPool({}, workers=2, timeout=60) as pool:
        found = list(pool.map(deadly.double, range(150)))
        assert sorted(pool.map(deadly.double, [1, 2])) == [(1, 2), (2, 4)], "the processes are used again"
        assert len(multiprocessing.active_children()) >= 2
        assert list(pool.map(deadly.double, [])) == []
        assert next(pool.map(deadly.double, range(100, 200)))[1] >= 200
        assert list(pool.map(deadly.double, [7])) == [(7, 14)], "not the answers of the unfinished iteration"
    assert sorted(found) == [(item, 2 * item) for item in range(150)]
    assert set(multiprocessing.active_children()) <= before


def test_only_items_that_end_a_process_are_lost() -> None:
    with WorkerPool({8: "kill", 9: "leave", 10: "hang"}, workers=1, timeout=0.5) as pool:
        found = dict(pool.map(deadly.double, range(70)))
    assert found.pop(8) == Lost("it ends the reading process (SIGSEGV)")
    assert found.pop(9) == Lost("it ends the reading process")
    assert found.pop(10) == Lost("reading it takes longer than 0.5 seconds")
    assert found == {number: 2 * number for number in range(70) if number not in (8, 9, 10)}


def test_a_mistake_in_the_function_is_raised() -> None:
    before = set(multiprocessing.active_children())
    with WorkerPool({1: "fail"}, workers=1, timeout=60) as pool, pytest.raises(ZeroDivisionError):
        list(pool.map(deadly.double, range(3)))
    assert set(multiprocessing.active_children()) <= before


def test_a_script_without_a_guard_gets_one_line(tmp_path: Path, clean: Path) -> None:
    script = tmp_path / "script.py"
    lines = [
        "from conformer_vision.check import check",
        f"check({str(clean)!r}, workers=1)",
    ]
    script.write_text("\n".join(lines))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert 'cannot be started; in a script, put the call below: if __name__ == "__main__":' in done.stderr
