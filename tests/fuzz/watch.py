"""Calling the package under watch: time, memory, and what it says on stderr."""

from __future__ import annotations

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
    r"skipped: |no report: |read [\d,]+ of [\d,]+ images$|\d+ of the images could not be read$"
    # A loose image beside class folders, which the structured inputs hold on purpose.
    r"|.*: passed over 1 image in no class folder: "
    r"|.* has no best.safetensors \(training ended early\); using last.safetensors$"
    # libtiff, inside Pillow, writes about damaged TIFF files past Python: "ZIPDecode: Decoding error."
    r"|(?!error: )(?!.*(Error|Exception|Warning)\b)[A-Za-z_][\w.]*: .*\.$"
)


class DefectError(Exception):
    """What must not happen; the text says what did."""


class Hang(BaseException):
    """The time for a call is used up. Not an `Exception`, so that nothing takes it for a broken image."""


@dataclass
class Row:
    """What came of one kind of input."""

    calls: int = 0
    refused: int = 0
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
        self._captured = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as this object
        signal.signal(signal.SIGALRM, self._ring)

    def attempt(
        self, kind: str, name: str, call: Callable[[], object], *, inputs: Path | None, times: int = 1
    ) -> bool:
        """Call something; tell whether it refused its input by a `UserError` of one line.

        Args:
            kind: row of the table.
            name: of the input or inputs.
            call: raises anything else where there is a defect.
            inputs: file or folder to keep in that case.
            times: how often the time of a call it may take, as one of many inputs.
        """
        from conformer_vision.errors import UserError

        row = self.rows.setdefault(kind, Row())
        row.calls += 1
        before = _reset_peak()
        start = time.perf_counter()
        problem = None
        refused = False
        try:
            with self._watched(times * self.seconds):
                call()
        except UserError as error:
            refused = True
            if len(str(error).strip().splitlines()) != 1:
                problem = f"not one line: {str(error)!r}"
        except Hang:
            problem = f"takes longer than {times * self.seconds:g} s"
        except DefectError as defect:
            problem = str(defect)
        except (Exception, SystemExit, KeyboardInterrupt):
            problem = traceback.format_exc()
        seconds, peak = time.perf_counter() - start, _status_field("VmHWM") - before
        row.refused += refused
        row.peak = max(row.peak, peak)
        if seconds > row.slowest:
            row.slowest, row.slowest_name = seconds, name
        if problem is None and peak > MOST_BYTES:
            problem = f"takes {peak >> 20} MB"
        if problem is not None:
            row.defects.append(f"{name}: {problem.strip()}")
            print(f"DEFECT {kind} {name}: {problem.strip()}", file=self._log, flush=True)
            self._keep(kind, name, problem, inputs)
        return refused

    def command(self, *arguments: object) -> None:
        """Run the command line.

        Raises:
            UserError: it refuses its input by one line.
            DefectError: another status than 0, 1 and 2, or something on stderr that does not belong there.
        """
        from conformer_vision.cli import main
        from conformer_vision.errors import UserError

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
        lines = [line for line in said.splitlines() if line and not _ALLOWED.match(line)]
        if status not in (0, 1, 2):
            raise DefectError(f"exit status {status}: {said[-2000:]}")
        if "Traceback (most recent call last)" in said:
            raise DefectError(f"a traceback, exit status {status}: {said[-4000:]}")
        if status == 2:
            if len(lines) != 1 or not lines[0].startswith("error: "):
                raise DefectError(f"exit status 2 with {len(lines)} lines: {said[-2000:]}")
            raise UserError(lines[0])
        if lines:
            raise DefectError(f"exit status {status} with unexpected lines: {' | '.join(lines)[-2000:]}")

    @contextlib.contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        """Capture stdout and stderr, C libraries' too; limit time and address space."""
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        os.dup2(self._captured.fileno(), 2)
        # Where no Python code runs that could see the alarm, the process ends with a traceback.
        faulthandler.dump_traceback_later(2 * seconds, exit=True, file=self._log)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        if used := _status_field("VmSize"):  # a MemoryError ends a greedy call before the machine suffers
            resource.setrlimit(resource.RLIMIT_AS, (used + 3 * MOST_BYTES, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
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
        folder = self.keep / kind.strip().replace(" ", "-") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "problem.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
        if inputs is not None and inputs.is_dir():
            shutil.copytree(inputs, folder / "input", dirs_exist_ok=True, symlinks=True)
        elif inputs is not None:
            shutil.copy(inputs, folder)


def _status_field(name: str) -> int:
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0


def _reset_peak() -> int:
    """Set the peak of resident memory back to what is used now; return that."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return _status_field("VmRSS")
