"""Memory and load time of one subject, in a process of its own: others would leave their traces in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import psutil
import torch

from conformer_vision.errors import UserError, first_line

from .config import COMPILE_MODES
from .subjects import Subject, measuring, open_subject

_LIBRARIES = {
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    **dict.fromkeys(COMPILE_MODES, ("torch._dynamo", "torch._inductor.compile_fx")),
}
_CODE = "from comparison.probe import main; main()"
_HERE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Probe:
    """What one subject takes before it is fast."""

    load_seconds: float
    """From the file to a network that can be called; the libraries are imported before."""
    first_answer_seconds: float
    """Of the first call, with the smallest batch; torch.compile compiles in it."""
    import_memory_mb: float
    """Before loading: on the CPU what Python and the imported libraries take, on a GPU nothing."""
    peak_memory_mb: dict[int, float]
    """Batch size -> the most until then, of the process on the CPU, of PyTorch's tensors on a GPU; empty
    where another library than PyTorch keeps a GPU's memory."""


def probe(subject: Subject, *, shape: Sequence[int], batches: Sequence[int], threads: int) -> Probe:
    """Opens a subject in a fresh process and calls it once with every size of batch.

    Args:
        subject: to open.
        shape: (C, H, W) of an image.
        batches: sizes.
        threads: on the CPU.

    Raises:
        UserError: it cannot be opened or called; the line says why.
    """
    order = {
        "subject": subject.to_json(),
        "shape": list(shape),
        "batches": sorted(batches),
        "threads": threads,
    }
    path = [str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CODE],  # -P: no module of the user's folder in place of a library's
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)},
    )
    if done.returncode < 0:
        raise UserError(
            f"{subject.name}: its process was ended by signal {-done.returncode}; is memory short?"
        )
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UserError(f"{subject.name}: its process failed ({reason})") from error
    if "error" in answer:
        raise UserError(f"{subject.name}: {answer['error']}")
    answer["peak_memory_mb"] = {int(batch): peak for batch, peak in answer["peak_memory_mb"].items()}
    return Probe(**answer)


def main() -> None:
    """The fresh process: an order as JSON on stdin, a `Probe` or an ``error`` as the last line of stdout."""
    order = json.loads(sys.stdin.read())
    try:
        answer = asdict(
            probe_here(
                Subject.from_json(order["subject"]),
                shape=order["shape"],
                batches=order["batches"],
                threads=order["threads"],
            )
        )
    except Exception as error:  # whatever a runtime raises is a reason to leave it out
        answer = {"error": first_line(error)}
    print("\n" + json.dumps(answer))


def probe_here(subject: Subject, *, shape: Sequence[int], batches: Sequence[int], threads: int) -> Probe:
    """As `probe`, in this process, whose own memory counts too."""
    for library in _LIBRARIES.get(subject.runtime.kind, ()):
        import_module(library)
    device = torch.device(subject.device)
    images = {batch: torch.rand(batch, *shape) for batch in batches}
    with measuring(threads):
        before = held_memory_mb(device)
        start = time.perf_counter()
        call = open_subject(subject)
        loaded = time.perf_counter()
        call(images[batches[0]].to(device))
        answered = time.perf_counter()
        peaks = {}
        for batch in batches:
            call(images[batch].to(device))
            peaks[batch] = peak_memory_mb(device)
    if device.type == "cuda" and subject.runtime.kind == "onnx":
        peaks = {}
    return Probe(loaded - start, answered - loaded, before, peaks)


def held_memory_mb(device: torch.device) -> float:
    """What is in use now, in MB of 1e6 bytes: of this process on the CPU, of PyTorch's tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return float(psutil.Process().memory_info().rss) / 1e6


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use so far, in MB of 1e6 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.is_file():
        # Not getrusage: Linux hands a new process the peak of the one that started it.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
