"""Memory and load time, in a process of its own and in this one."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from conformer_vision.benchmark import probe as module
from conformer_vision.benchmark.config import BenchmarkConfig, Runtime
from conformer_vision.benchmark.prepare import prepare
from conformer_vision.benchmark.probe import probe, probe_here
from conformer_vision.benchmark.subjects import Subject
from conformer_vision.errors import UserError

from .conftest import NANO, make_subject

SHAPE = (3, 32, 32)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A folded Conformer with its file."""
    config = BenchmarkConfig(models=(NANO,), runtimes=("folded",), peers=(), reference=False, size=32)
    prepared = prepare(config, tmp_path, device=torch.device("cpu"), say=lambda line: None)
    return prepared.subjects[0]


def test_subjects_travel(tmp_path: Path) -> None:
    subject = make_subject("onnx", tmp_path, runtime=Runtime("onnx", "int8"), parameters=3, macs=None)
    assert Subject.from_json(subject.to_json()) == subject


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process inherits no peak")
def test_a_process_of_its_own(subject: Subject) -> None:
    held = torch.ones(250_000_000)  # 1 GB of this process, which the other's peak must not show
    found = probe(subject, shape=SHAPE, batches=(4, 1), threads=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > held.nbytes
    assert found.load_seconds > 0
    assert found.first_answer_seconds > 0
    assert list(found.peak_memory_mb) == [1, 4]
    # 26 MB of weights at least, and no gigabyte of anything.
    assert found.import_memory_mb < found.peak_memory_mb[1] <= found.peak_memory_mb[4]
    assert 20 < found.peak_memory_mb[4] - found.import_memory_mb < 600


def test_in_this_process(subject: Subject) -> None:
    threads = torch.get_num_threads()
    found = probe_here(subject, shape=SHAPE, batches=[1, 2], threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert list(found.peak_memory_mb) == [1, 2]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{NANO} eager: .*does not exist") as caught:
        probe(make_subject("eager", tmp_path), shape=SHAPE, batches=(1,), threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9; is memory short"),
        ("raise SystemExit('cannot\\nallocate')", r"its process failed \(allocate\)"),
        ("pass", r"its process failed \(no output\)"),
    ],
)
def test_a_process_that_dies(code: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CODE", code)
    with pytest.raises(UserError, match=f"{NANO} onnx: .*{line}"):
        probe(make_subject("onnx", tmp_path), shape=SHAPE, batches=(1,), threads=1)
