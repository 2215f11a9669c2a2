"""Threads for a network: PyTorch's number, with and without PyTorch. test_memory.py has the memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformer_vision import available
from conformer_vision.available import compute_threads

BOTH = """
from conformer_vision.available import compute_threads
alone = compute_threads()
import torch
print(alone, torch.get_num_threads(), compute_threads())
torch.set_num_threads(2)
print(compute_threads())
"""


@pytest.mark.parametrize("given", ["3", None])
def test_it_is_pytorchs_number(given: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {} if given is None else {"OMP_NUM_THREADS": given}
    command = [sys.executable, "-c", BOTH]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    (alone, torchs, beside), (chosen,) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert beside == torchs and chosen == 2
    assert alone == torchs if given else alone <= torchs  # a container's limit, which PyTorch ignores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Threads on a machine with four cores of two hardware threads, in a control group with these files."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number in range(8):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    cores, group = available._cores, tmp_path / "group"
    group.mkdir()
    monkeypatch.setattr(available, "_cores", lambda: cores(tmp_path))
    monkeypatch.setattr(available, "_groups", lambda controller: [group])

    def threads(*allowed: int, **files: str) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(allowed), raising=False)
        for path in group.iterdir():
            path.unlink()
        for name, text in files.items():
            (group / name.replace("_", ".", 1)).write_text(f"{text}\n")
        return compute_threads()

    return threads


def test_cores_that_may_be_used(machine: Callable[..., int]) -> None:
    assert machine(*range(8)) == 4, "one thread for each core"
    assert machine(0, 4) == 1 and machine(0, 1) == 2
    assert machine(0, 1, 99) == 3, "a processor whose core is not known"


def test_no_more_than_a_container_may_take(machine: Callable[..., int]) -> None:
    everything = range(8)
    assert machine(*everything, cpu_max="max 100000") == 4
    assert machine(*everything, cpu_max="250000 100000") == 3
    assert machine(*everything, cpu_max="50000 100000") == 1
    assert machine(*everything, cpu_max="nonsense") == 4
    assert machine(*everything, cpu_cfs_quota_us="200000", cpu_cfs_period_us="100000") == 2
    assert machine(*everything, cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000") == 4


@pytest.mark.parametrize(
    ("given", "wanted"), [("2", 2), ("5,1", 5), ("99", 8), ("0", 4), ("many", 4), ("", 4), ("-1", 4)]
)
def test_what_the_environment_asks_for(
    machine: Callable[..., int], monkeypatch: pytest.MonkeyPatch, given: str, wanted: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert machine(*range(8)) == wanted
