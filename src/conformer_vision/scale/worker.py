"""What a process of the cluster does: answer the images of a part with one predictor, and write that."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError, first_line, one_line, reason_of
from conformer_vision.inference import Prediction, Predictor, Prepared
from conformer_vision.inference.predictions import stored_text
from conformer_vision.model_version import version_of
from conformer_vision.runs import ModelSource

from .folder import UNFETCHED, AnswerFolder, Part
from .stores import Store

_GUESS = pa.struct([("label", pa.string()), ("probability", pa.float64())])
ANSWERS = pa.schema(
    [
        ("name", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float64())),
        ("error", pa.string()),
        ("conv", _GUESS),
        ("trans", _GUESS),
        ("unsure", pa.string()),
        ("conformal_set", pa.list_(pa.string())),
        ("present", pa.list_(pa.string())),
    ]
)
"""The columns of the answers: the fields of a `Prediction`."""

_READERS = 4
"""Threads that fetch and decode images in each process."""


_Answered = tuple[Prediction, bool]
"""An answer, and whether the image was there to be read, or is missing for good."""
_Read = Prepared | _Answered


@dataclass(frozen=True)
class Job:
    """What all processes are told."""

    build: Callable[[], Predictor]
    source: ModelSource
    version: str
    """Of the model, as `version_of` gives it."""
    batch_size: int
    top_k: int | None
    folder: Path
    stores: Sequence[Store | None]
    """Of every input."""


@dataclass(frozen=True)
class Outcome:
    """What came of a part."""

    images: int = 0
    broken: int = 0
    """Images without an answer."""
    unfetched: int = 0
    """Those of them that their store did not give."""
    unsure: int = 0
    failed: str = ""
    """Why nothing was answered, in a line; empty if all went well."""


class Worker:
    """Answers parts; Ray Data makes one in each of its processes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = AnswerFolder(job.folder)

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> dict[str, list[Any]]:
        """Answer a part, given in columns ``list`` and ``number``; return them and its `Outcome` so."""
        part = Part(*(int(batch[name][0]) for name in Part._fields))
        row = part._asdict() | dataclasses.asdict(self._outcome_of(part))
        return {name: [value] for name, value in row.items()}

    def _outcome_of(self, part: Part) -> Outcome:
        try:
            return self._answer(part)
        except UserError as error:
            return Outcome(failed=str(error))
        except Exception as error:  # as a line: Ray would bring it with the stack traces of three processes
            return Outcome(failed=f"{type(error).__name__}: {first_line(error)}")

    @cached_property
    def _predictor(self) -> Predictor:
        if version_of(self._job.source) != self._job.version:
            raise UserError(f"{self._job.source.path} is another file on another machine; copy it again")
        return self._job.build()

    def _answer(self, part: Part) -> Outcome:
        answers: list[Prediction] = []
        unfetched = 0
        for prediction, fetched in self._predictions(self._folder.images_of(part)):
            answers.append(prediction)
            unfetched += not fetched
        table = as_table(answers).replace_schema_metadata({UNFETCHED: str(unfetched)})
        self._folder.write(part, table)
        return Outcome(
            images=len(answers),
            broken=sum(each.error is not None for each in answers),
            unfetched=unfetched,
            unsure=sum(each.unsure is not None for each in answers),
        )

    def _predictions(self, images: pa.Table) -> Iterator[_Answered]:
        """Yield the answers in order, and whether each image was fetched, while the next batch is read."""
        rows, size = images.to_pylist(), self._job.batch_size
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read-images") as pool:
            batches = [rows[start : start + size] for start in range(0, len(rows), size)]
            reading: deque[list[Future[_Read]]] = deque()
            for batch in [*batches, []]:
                reading.append([pool.submit(self._read, row) for row in batch])
                if len(reading) == 2:
                    yield from self._answers([future.result() for future in reading.popleft()])

    def _read(self, row: Mapping[str, Any]) -> _Read:
        """Return the model's input, or the answer that says why there is none."""
        place = os.fsdecode(row["path"])
        name = place if row["name"] is None else os.fsdecode(row["name"])
        store = self._job.stores[row["input"]]
        content: Path | bytes = Path(place)
        if store is not None:
            try:
                content = store.read(store.path_of(place))
            except Exception as error:  # every library behind a store has its own
                missing = isinstance(error, FileNotFoundError)
                line = f"{one_line(name)}: cannot be fetched ({reason_of(error)})"
                return Prediction(name, (), (), error=line), missing
        try:
            return self._predictor.read(content, name=name)
        except BrokenImageError as error:
            return Prediction(name, (), (), error=str(error)), True

    def _answers(self, batch: Sequence[_Read]) -> Iterator[_Answered]:
        whole = [each for each in batch if isinstance(each, Prepared)]
        answers = iter(self._predictor.answer(whole, top_k=self._job.top_k))
        for each in batch:
            yield (next(answers), True) if isinstance(each, Prepared) else each


def as_table(answers: Sequence[Prediction]) -> pa.Table:
    """Return answers as a table of `ANSWERS`; what is not UTF-8, as in names of files, is escaped."""
    columns = {
        field.name: pa.array([_stored(getattr(each, field.name)) for each in answers], field.type)
        for field in ANSWERS
    }
    return pa.table(columns, schema=ANSWERS)


def _stored(value: Any) -> Any:
    if isinstance(value, str):
        return stored_text(value)
    if hasattr(value, "_asdict"):  # a Guess
        return {name: _stored(each) for name, each in value._asdict().items()}
    return [_stored(each) for each in value] if isinstance(value, tuple) else value
