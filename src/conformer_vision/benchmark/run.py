"""The benchmark: every form is written, opened, compared with the model, and timed in turns."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.inference.conversion.compare import TOLERANCES, relative_difference
from conformer_vision.inference.conversion.images import sample_photos
from conformer_vision.inference.runtimes.network import resolve_device
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model

from .forms import FORMS, OpenForm, find_form, open_form
from .machine import Machine, versions
from .timing import take_turns

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What `benchmark` runs.

    Args:
        model: Run folder, weights file, or the name of published weights.
        forms: Names in `FORMS`, each of which must be possible; None takes all that are possible here.
        batch: Batch sizes.
        repeats: Rounds, in each of which every form has one turn.
        seconds: No new round of a batch size begins after this time, once three are timed.
        threads: CPU threads of every form; None keeps PyTorch's number.
        device: ``auto`` or a torch device.

    Raises:
        UserError: A value is impossible; the line names it.
    """

    model: str
    forms: tuple[str, ...] | None = None
    batch: tuple[int, ...] = (1, 8)
    repeats: int = 30
    seconds: float = 120.0
    threads: int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("batch", "forms"):
            if getattr(self, name) == ():
                raise UserError(f"{name}: give at least one")
        for name, value in (("repeats", self.repeats), ("threads", self.threads)):
            if value is not None and value < 1:
                raise UserError(f"{name} {value}: must be 1 or more")
        for size in self.batch:
            if size < 1:
                raise UserError(f"batch {size}: must be 1 or more")
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"seconds {self.seconds}: must be a number above 0")
        for name in self.forms or ():
            find_form(name)


@dataclass(frozen=True)
class Row:
    """One form with one batch size."""

    form: str
    batch: int
    rounds: int
    median_ms: float
    """Median latency of a whole batch."""
    p95_ms: float
    """95th percentile of the same latencies."""
    images_per_second: float
    """Batch size over the median latency."""
    speedup: float
    """Median latency of the first form over this one's; above 1 is faster."""
    file_mb: float
    """Size on disk in MB of 1e6 bytes; of ``eager`` the size of its parameters and buffers."""
    difference: float
    """Norm of the difference of the logits from the model's, over their norm; the worst image's."""
    wrong: bool
    """The difference is larger than the precision explains, or not finite."""
    times_ms: tuple[float, ...]
    """One per round."""


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark` found."""

    model: str
    input_size: tuple[int, int, int]
    """(C, H, W) of every image."""
    machine: Machine
    versions: dict[str, str]
    date: str
    """In UTC, ISO 8601."""
    rows: tuple[Row, ...]
    """By batch size, in the order of `FORMS`."""
    left_out: tuple[str, ...]
    """One line per form that is not possible here, with the reason."""

    def to_json(self) -> str:
        """Return everything as one JSON object; a difference that is not finite is null."""
        values = asdict(self)
        for row in values["rows"]:
            row["difference"] = row["difference"] if math.isfinite(row["difference"]) else None
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)


def benchmark(config: BenchmarkConfig, *, say: Say = lambda line: None) -> BenchmarkResult:
    """Compare the forms of a trained model: speed, size, and difference from the model.

    All forms have a turn in every round, so that a slow moment of the machine hits all alike.

    Args:
        config: What to run.
        say: Is told every step and every form that is left out, one line each.

    Raises:
        UserError: No such model or device, a form that was asked for by name and is not possible here, or
            no form that is.
    """
    device = resolve_device(config.device)
    model, spec = load_model(config.model)
    model = model.to(device)
    images = sample_photos(spec)
    with tempfile.TemporaryDirectory(prefix="conformer-vision-") as folder, _threads(config.threads):
        opened, left_out = _open_all(config, model, spec, images, Path(folder), device=device, say=say)
        if not opened:
            raise UserError("no form of this model is possible here; see the lines above")
        with torch.inference_mode():
            expected = model(images.to(device)).float().cpu()
        rows = []
        for size in sorted(set(config.batch)):
            say(f"batch {size}: {len(opened)} forms in turns")
            rows += _time_all(opened, images, expected, batch=size, config=config)
        machine = Machine.here(device)
    return BenchmarkResult(
        model=config.model,
        input_size=spec.input_size,
        machine=machine,
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=tuple(rows),
        left_out=tuple(left_out),
    )


def _open_all(
    config: BenchmarkConfig,
    model: nn.Module,
    spec: ModelSpec,
    images: Tensor,
    folder: Path,
    *,
    device: torch.device,
    say: Say,
) -> tuple[list[OpenForm], list[str]]:
    """Write and open every form; return those that work, and a line for each that does not."""
    opened: list[OpenForm] = []
    left_out: list[str] = []
    for form in [find_form(name) for name in dict.fromkeys(config.forms or FORMS)]:
        say(f"preparing {form.name}")
        try:
            opened.append(open_form(form, model, spec, folder, images=images, device=device))
        except UserError as error:
            line = f"{form.name}: {error}"
            if config.forms is not None:
                raise UserError(line) from error
            left_out.append(line)
            say(f"left out: {line}")
    return opened, left_out


def _time_all(
    opened: list[OpenForm], images: Tensor, expected: Tensor, *, batch: int, config: BenchmarkConfig
) -> list[Row]:
    """Return the rows of one batch size."""
    repeated = torch.arange(batch) % len(images)
    inputs, wanted = images[repeated], expected[repeated]
    differences = [relative_difference(form.call(inputs).numpy(), wanted.numpy()) for form in opened]
    calls = [partial(form.call, inputs) for form in opened]
    times = take_turns(calls, rounds=config.repeats, seconds=config.seconds)
    first = float(np.median(times[0]))
    rows = []
    for form, taken, difference in zip(opened, times, differences, strict=True):
        median = float(np.median(taken))
        rows.append(
            Row(
                form=form.form.name,
                batch=batch,
                rounds=len(taken),
                median_ms=median,
                p95_ms=float(np.percentile(taken, 95)),
                images_per_second=1e3 * batch / median,
                speedup=first / median,
                file_mb=form.file_mb,
                difference=difference,
                wrong=not difference <= TOLERANCES[form.form.precision],
                times_ms=tuple(taken),
            )
        )
    return rows


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Set the CPU threads of every runtime; PyTorch's number is restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
