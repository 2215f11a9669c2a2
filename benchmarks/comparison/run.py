"""The whole measurement: everything prepared, probed in processes of their own, then timed in turns."""

from __future__ import annotations

import gc
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from conformer_vision.benchmark.machine import Machine, versions
from conformer_vision.benchmark.timing import take_turns
from conformer_vision.errors import UserError, first_line
from conformer_vision.inference.conversion.compare import relative_difference
from conformer_vision.inference.conversion.formats import Precision
from conformer_vision.inference.runtimes.network import resolve_device

from .ceiling import measure_ceilings
from .config import ComparisonConfig, Runtime
from .measure import percentiles, ratio, share_of_ceiling
from .prepare import Prepared, prepare
from .probe import Probe, probe
from .result import TOLERANCE, ComparisonResult, Row
from .subjects import Subject, measuring, open_subject

Say = Callable[[str], None]
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def compare(config: ComparisonConfig, *, say: Say = lambda line: None) -> ComparisonResult:
    """Measures speed, memory and load time of models in several forms, all in turns in one run.

    Args:
        config: what to measure.
        say: is told every step, and what is left out, in one line.

    Raises:
        UserError: no such model, file or device, images that a model does not take, a form that was asked
            for by name and cannot be had, or nothing left to measure.
    """
    device = resolve_device(config.device)
    threads = config.threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="conformer-vision-") as folder, measuring(threads):
        machine = Machine.here(device)
        with _inductor_cache(Path(folder, "inductor")):
            prepared = prepare(config, Path(folder), device=device, say=say)
            probes = _probe_all(prepared, config, threads, say)
            for line in prepared.left_out:
                say(f"left out: {line}")
            if not probes:
                raise UserError("nothing is left to measure; see the lines above")
            precisions = [subject.runtime.precision for subject in probes]
            say("measuring matrix products")
            ceilings = measure_ceilings(precisions, device)
            rows: list[Row] = []
            for size in sorted(set(config.batch)):
                say(f"batch {size}: {len(probes)} in turns")
                rows += _measure(probes, prepared.batch(size), config, device)
                gc.collect()
            for precision, rate in measure_ceilings(precisions, device).items():  # the machine's pace varies
                ceilings[precision] = max(rate, ceilings.get(precision, 0.0))
            ceilings = raised(ceilings, rows)
    return ComparisonResult(
        machine=machine,
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        shape=prepared.shape,
        ceilings=ceilings,
        rows=tuple(with_share(row, ceilings) for row in rows),
        left_out=tuple(prepared.left_out),
        notes=_notes(prepared, probes, ceilings),
    )


def _probe_all(prepared: Prepared, config: ComparisonConfig, threads: int, say: Say) -> dict[Subject, Probe]:
    """Memory and load time of every subject that can be run."""
    probes = {}
    for number, subject in enumerate(prepared.subjects, start=1):
        say(f"loading {subject.name} ({number} of {len(prepared.subjects)})")
        try:
            probes[subject] = probe(subject, shape=prepared.shape, batches=config.batch, threads=threads)
        except UserError as error:
            prepared.leave_out(str(error), strict=config.is_strict(peer=subject.peer))
    return probes


def _measure(
    probes: Mapping[Subject, Probe],
    images: Tensor,
    config: ComparisonConfig,
    device: torch.device,
) -> list[Row]:
    """The rows of one size of batch, without shares of the ceiling."""
    subjects = list(probes)
    images = images.to(device)
    calls, answers = [], []
    for subject in subjects:
        try:
            call = open_subject(subject)
            answers.append(call(images).cpu())
        except Exception as error:  # as in the process that probed it, but with the others beside it
            raise UserError(f"{subject.name}, batch {len(images)}: {first_line(error)}") from error
        calls.append(partial(call, images))
    times = take_turns(calls, rounds=config.repeats, seconds=config.seconds)
    rows = []
    for index, subject in enumerate(subjects):
        base = _baseline(subject, subjects)
        found = probes[subject]
        pace = 1e3 * len(images) / float(np.median(times[index]))
        difference = None
        if base is not None:
            difference = relative_difference(answers[index].numpy(), answers[base].numpy())
        rows.append(
            Row(
                model=subject.model,
                runtime=subject.runtime.name,
                precision=subject.runtime.precision,
                peer=subject.peer,
                batch=len(images),
                rounds=len(times[index]),
                images_per_second=pace,
                latency_ms=percentiles(times[index]),
                ratio=None if base is None else ratio(times[index], times[base]),
                baseline=None if base is None else subjects[base].runtime.name,
                difference=difference,
                wrong=_is_wrong(subject, answers[index], difference),
                parameters=subject.parameters,
                macs=subject.macs,
                share_of_ceiling=None,
                import_memory_mb=found.import_memory_mb,
                peak_memory_mb=found.peak_memory_mb.get(len(images)),
                load_seconds=found.load_seconds,
                first_answer_seconds=found.first_answer_seconds,
                times_ms=tuple(times[index]),
            )
        )
    return rows


def _baseline(subject: Subject, subjects: Sequence[Subject]) -> int | None:
    """Where the plain formulation of the same model is, or else the model as trained, in float32."""
    for kind in ("reference", "eager"):
        for index, other in enumerate(subjects):
            if (other.model, other.runtime) == (subject.model, Runtime(kind)):
                return index
    return None


def _is_wrong(subject: Subject, answer: Tensor, difference: float | None) -> bool:
    if not bool(torch.isfinite(answer).all()):
        return True
    return subject.runtime.precision == "fp32" and difference is not None and difference >= TOLERANCE


def raised(ceilings: Mapping[Precision, float], rows: Sequence[Row]) -> dict[Precision, float]:
    """Raise the ceilings to the fastest rows: what a network reached, the machine can do."""
    found = dict(ceilings)
    for row in rows:
        arithmetic = _arithmetic(row)
        if arithmetic in found and row.macs is not None:
            found[arithmetic] = max(found[arithmetic], row.macs * row.images_per_second)
    return found


def with_share(row: Row, ceilings: Mapping[Precision, float]) -> Row:
    """A row with its share of the ceiling in its own arithmetic, where both are known."""
    ceiling = ceilings.get(_arithmetic(row))
    if ceiling is None or row.macs is None:
        return row
    return replace(row, share_of_ceiling=share_of_ceiling(row.macs, row.images_per_second, ceiling))


def _arithmetic(row: Row) -> Precision:
    # OpenVINO's fp16 is how the weights are stored; it computes in fp32.
    return "fp32" if row.runtime == "openvino-fp16" else row.precision


def _notes(
    prepared: Prepared, probes: Mapping[Subject, Probe], ceilings: Mapping[Precision, float]
) -> tuple[str, ...]:
    notes = ["Accuracy is not measured here."]
    if prepared.random_weights:
        notes.append("Models given by name have random weights and BatchNorm statistics.")
    if any(subject.runtime.precision == "int8" for subject in probes):
        notes.append(
            f"int8 is calibrated on {len(prepared.images)} crops of two photos; what it costs in accuracy"
            " shows on a trained model ('conformer-vision export' measures it)."
        )
        for name, parts in prepared.kept_float.items():
            notes.append(f"{name} leaves in float what changes its answers most: {', '.join(parts)}.")
        if "int8" not in ceilings:
            notes.append("PyTorch has no int8 matrix product here that is faster than its float32: no share.")
    return tuple(notes)


@contextmanager
def _inductor_cache(folder: Path) -> Iterator[None]:
    """A fresh cache for torch.compile: the first process compiles, as a user's does, the timed one reads."""
    before = os.environ.get(_CACHE)
    os.environ[_CACHE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE]
        else:
            os.environ[_CACHE] = before
