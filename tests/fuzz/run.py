"""Gives thousands of damaged pictures, tables, archives, recipes and run folders to the package.

    python tests/fuzz/run.py --count 5000 --seed 0
    python tests/fuzz/run.py --count 500 --kinds pictures archives --keep defects

Every input is made from a good one by a generator of its own, seeded by ``--seed``, its kind and its number.
A defect is: an exception other than `UserError` from the Python interface; from the command line a status
other than 0, 1 and 2, a traceback, or more than one line of error (lines ``skipped:`` aside); more than
``--seconds`` for one call; more than 2 GB for one call; a run that cannot be resumed any more. Inputs with
defects are copied to ``--keep``. The exit status is 1 where there were any. Needs no network; memory is
watched on Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

MOST_BYTES = 2 << 30
_ALLOWED = re.compile(
    r"skipped: |no report: |read [\d,]+ of [\d,]+ pictures$|\d+ of the pictures could not be read$"
    r"|.* has no best.safetensors \(training ended early\); using last.safetensors$"
)


class Defect(Exception):
    """What must not happen; the text says what did."""


class Hang(BaseException):
    """The time for a call is used up. Not an `Exception`, so that nothing takes it for a broken picture."""


@dataclass
class Row:
    """What came of one kind of input."""

    inputs: int = 0
    calls: int = 0
    refused: int = 0
    answered: int = 0
    slowest: float = 0.0
    slowest_name: str = ""
    peak: int = 0
    defects: list[str] = field(default_factory=list)


class Harness:
    """Calls the package under watch and keeps the score.

    Args:
        keep: where inputs with defects are copied to; None for nowhere.
        seconds: time that a call may take.
    """

    def __init__(self, keep: Path | None, *, seconds: float) -> None:
        self.keep = keep
        self.seconds = seconds
        self.rows: dict[str, Row] = {}
        self._log = os.fdopen(os.dup(2), "w")  # stderr itself is captured during a call
        self._captured = tempfile.TemporaryFile()
        signal.signal(signal.SIGALRM, self._ring)

    def input(self, kind: str, *, refused: bool) -> None:
        """Count an input."""
        row = self.rows.setdefault(kind, Row())
        row.inputs += 1
        row.refused += refused
        row.answered += not refused

    def attempt(self, kind: str, name: str, call: Callable[[], bool], *, inputs: Path | None) -> bool | None:
        """Call something; what it gives, or None where there was a defect.

        Args:
            kind: row of the table.
            name: of the input or inputs.
            call: gives whether the input was refused; raises a `Defect`, or anything, where there is one.
            inputs: file or folder to keep in that case.
        """
        row = self.rows.setdefault(kind, Row())
        row.calls += 1
        before = _reset_peak()
        start = time.perf_counter()
        problem = None
        refused: bool | None = None
        try:
            with self._watched(name):
                refused = call()
        except Hang:
            problem = f"takes longer than {self.seconds:g} s"
        except Defect as defect:
            problem = str(defect)
        except (Exception, SystemExit, KeyboardInterrupt):
            problem = traceback.format_exc()
        seconds, peak = time.perf_counter() - start, _peak() - before
        if problem is None and peak > MOST_BYTES:
            problem = f"takes {peak >> 20} MB"
        if seconds > row.slowest:
            row.slowest, row.slowest_name = seconds, name
        row.peak = max(row.peak, peak)
        if problem is None:
            return refused
        row.defects.append(f"{name}: {problem.strip()}")
        print(f"DEFECT {kind} {name}: {problem.strip()}", file=self._log, flush=True)
        self._keep(kind, name, problem, inputs)
        return None

    def command(self, *arguments: object) -> int:
        """The exit status of the command line.

        Raises:
            Defect: another status than 0, 1 and 2, or something on stderr that does not belong there.
        """
        from conformer_vision.cli import main

        self._captured.seek(0)
        self._captured.truncate()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 3
        sys.stdout.flush()
        sys.stderr.flush()
        self._captured.seek(0)
        said = self._captured.read().decode("utf-8", "replace")
        return _judge(status, said)

    @contextlib.contextmanager
    def _watched(self, name: str) -> Iterator[None]:
        """Stdout and stderr captured, C libraries' too; time and address space limited."""
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        os.dup2(self._captured.fileno(), 2)
        # Where no Python code runs that could see the alarm, the process ends with a traceback.
        faulthandler.dump_traceback_later(2 * self.seconds, exit=True, file=self._log)
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            with _limited_address_space():
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)
                os.close(copy)

    def _ring(self, number: int, frame: object) -> None:
        raise Hang

    def _keep(self, kind: str, name: str, problem: str, inputs: Path | None) -> None:
        if self.keep is None:
            return
        folder = self.keep / kind.replace(" ", "-") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "problem.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
        if inputs is not None and inputs.is_dir():
            shutil.copytree(inputs, folder / "input", dirs_exist_ok=True, symlinks=True)
        elif inputs is not None:
            shutil.copy(inputs, folder)


def _judge(status: int, said: str) -> int:
    lines = [line for line in said.splitlines() if line and not _ALLOWED.match(line)]
    if status not in (0, 1, 2):
        raise Defect(f"exit status {status}: {said[-2000:]}")
    if "Traceback (most recent call last)" in said:
        raise Defect(f"a traceback, exit status {status}: {said[-4000:]}")
    if status == 2 and not (len(lines) == 1 and lines[0].startswith("error: ")):
        raise Defect(f"exit status 2 with {len(lines)} lines: {said[-2000:]}")
    if status != 2 and lines:
        raise Defect(f"exit status {status} with unexpected lines: {' | '.join(lines)[-2000:]}")
    return status


def _status_field(name: str) -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> int:
    """Sets the peak of resident memory back to what is used now, which is given."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status_field("VmRSS")


def _peak() -> int:
    return _status_field("VmHWM")


@contextlib.contextmanager
def _limited_address_space() -> Iterator[None]:
    """Ends a greedy call by a MemoryError before it takes the machine down."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = _status_field("VmSize")
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 3 * MOST_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _print_table(rows: dict[str, Row], seconds: float) -> None:
    print(
        f"{'kind':28} {'inputs':>7} {'calls':>7} {'refused':>8} {'answered':>9} {'defects':>8} "
        f"{'slowest s':>10} {'peak MB':>8}"
    )
    for kind, row in rows.items():
        print(
            f"{kind:28} {row.inputs:7} {row.calls:7} {row.refused:8} {row.answered:9} {len(row.defects):8} "
            f"{row.slowest:10.2f} {row.peak >> 20:8}  {row.slowest_name}"
        )
    inputs, calls = (sum(getattr(row, name) for row in rows.values()) for name in ("inputs", "calls"))
    defects = sum(len(row.defects) for row in rows.values())
    print(f"{inputs} inputs, {calls} calls, {defects} defects, {seconds:.0f} s")


def main() -> int:
    """Run; the status is 1 where there were defects."""
    parser = argparse.ArgumentParser(description="Damaged inputs for conformer-vision")
    parser.add_argument("--count", type=int, default=5000, help="damaged inputs, over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed of all damage")
    parser.add_argument("--kinds", nargs="+", help="only these kinds; --count is then for them alone")
    parser.add_argument("--keep", type=Path, help="folder for inputs with defects")
    parser.add_argument("--seconds", type=float, default=60.0, help="time that one call may take")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        work = Path(name)
        os.environ |= {
            "XDG_CACHE_HOME": str(work / "cache"),
            "HF_HOME": str(work / "cache" / "huggingface"),
            "HF_DATASETS_CACHE": str(work / "cache" / "datasets"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        import cases  # after the environment is set, which libraries read when they are imported

        unknown = set(arguments.kinds or ()) - cases.SHARES.keys()
        if unknown:
            parser.error(f"unknown kinds {', '.join(sorted(unknown))}; there are {', '.join(cases.SHARES)}")
        harness = Harness(arguments.keep, seconds=arguments.seconds)
        start = time.perf_counter()
        fuzz = cases.Fuzz(harness, work, seed=arguments.seed)
        for kind, count in cases.shares(arguments.count, arguments.kinds).items():
            fuzz.run(kind, count)
        _print_table(harness.rows, time.perf_counter() - start)
    return 1 if any(row.defects for row in harness.rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
