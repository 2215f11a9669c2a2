"""From single images to batches: one queue, one thread that computes.

An image has a place in the queue from the moment when its request was received until its forward pass
begins, or until nobody waits for it any more. Images that are still being decoded are *coming*; a batch waits
for them, a little, and for nothing else: an image that is alone is computed at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from conformer_vision.serve.limits import EXPLANATIONS_AT_ONCE, Budget, Hold, Limits, RefusedError, busy
from conformer_vision.serve.metrics import Metrics
from conformer_vision.serve.worker import Worker

_log = logging.getLogger(__name__)

T = TypeVar("T")
Compute = Callable[[Sequence[Any]], Sequence[Any]]


class ModelFailedError(RefusedError):
    """The model raised an error; the log has it."""

    def __init__(self) -> None:
        super().__init__(500, "the model failed; the log of the server says why", reason="failed")


class Key(Protocol):
    """What images of one batch have in common; compared by ``==``."""

    def compute(self, prepared: Sequence[Any]) -> Sequence[Any]:
        """Answer prepared images in one forward pass, in their order."""


class Computed(NamedTuple):
    """An answer and how long it took."""

    answer: Any
    queue_ms: float
    inference_ms: float


@dataclass(eq=False)
class _Job:
    """A decoded image that waits for a batch."""

    key: Key
    prepared: Any
    place: Place
    entered: float
    future: asyncio.Future[Computed]


@dataclass(eq=False)
class _Task:
    """A function that waits for its turn between two batches."""

    function: Callable[[], Any]
    entered: float
    future: asyncio.Future[Computed]


class Batcher:
    """Gathers images to batches.

    Args:
        limits: The bounds of batches and queue.
        metrics: Told what happens.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        full = busy("the server is full; try again in a second", reason="queue_full")
        self.places = Budget(limits.max_queue, full)
        self.explanations = Budget(EXPLANATIONS_AT_ONCE, full)
        self._worker = Worker("inference")
        self._jobs: deque[_Job] = deque()
        self._tasks: deque[_Task] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to compute, in the running event loop."""
        self._loop = asyncio.get_running_loop().create_task(self._run(), name="batching")

    async def stop(self) -> None:
        """End; what still waits is not computed."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])
        self._worker.stop()

    @property
    def alive(self) -> bool:
        """Whether batches are being made."""
        return self._loop is not None and not self._loop.done()

    @property
    def waiting(self) -> int:
        """Images that have a place in the queue."""
        return self.places.held

    def place(self) -> Place:
        """Take a place for an image that is to be decoded; to be used in a ``with`` block, which frees it.

        Raises:
            RefusedError: The queue is full.
        """
        return Place(self)

    async def compute(self, key: Key, prepared: Any, place: Place) -> Computed:
        """Answer one prepared image, together with others of the same key.

        Cancelling the call before the forward pass begins takes the image out of the queue.

        Raises:
            ModelFailedError: The model raised an error, also for this image alone.
        """
        place.arrive()
        loop = asyncio.get_running_loop()
        job = _Job(key, prepared, place, loop.time(), loop.create_future())
        self._jobs.append(job)
        self._changed.set()
        return await job.future  # cancelled with its caller

    async def run(self, function: Callable[[], T]) -> Computed:
        """Run a function in the thread of the model, between two batches, and return or raise what it does.

        Cancelling the call before its turn takes it out of the queue. The caller holds one of `explanations`.
        """
        loop = asyncio.get_running_loop()
        task = _Task(function, loop.time(), loop.create_future())
        self._tasks.append(task)
        self._changed.set()
        return await task.future

    async def _run(self) -> None:
        while True:
            while not self._jobs and not self._tasks:
                self._changed.clear()
                await self._changed.wait()
            if batch := await self._gather():
                await self._compute(batch)
            if self._tasks and not (task := self._tasks.popleft()).future.done():
                await self._perform(task)

    async def _gather(self) -> list[_Job]:
        """Return the next batch; empty if nobody waits any more, or only for a task."""
        loop = asyncio.get_running_loop()
        while self._forget_the_gone():
            end = self._jobs[0].entered + self._limits.max_wait_ms / 1000
            batch = [job for job in self._jobs if job.key == self._jobs[0].key][: self._limits.max_batch]
            if len(batch) < self._limits.max_batch and self._coming and loop.time() < end:
                self._changed.clear()
                timer = loop.call_at(end, self._changed.set)
                await self._changed.wait()
                timer.cancel()
                continue
            chosen = set(map(id, batch))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            return batch
        return []

    def _forget_the_gone(self) -> int:
        """Drop images that nobody waits for any more; return how many are left."""
        if any(job.future.done() for job in self._jobs):
            self._jobs = deque(job for job in self._jobs if not job.future.done())
        return len(self._jobs)

    async def _compute(self, batch: list[_Job]) -> None:
        loop = asyncio.get_running_loop()
        for job in batch:
            job.place.leave()
        key, prepared, began = batch[0].key, [job.prepared for job in batch], loop.time()
        try:
            answers = await self._worker.run(lambda: key.compute(prepared))
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers to {len(batch)} images")
        except Exception as error:
            if len(batch) > 1:  # one image, or their number, may be what fails
                for job in batch:
                    if not job.future.done():
                        await self._compute([job])
                return
            _log.error("the model failed: %s: %s", type(error).__name__, error, exc_info=error)
            if not batch[0].future.done():
                batch[0].future.set_exception(ModelFailedError())
            return
        took = 1000 * (loop.time() - began)
        self._metrics.batch(len(batch), took / 1000)
        for job, answer in zip(batch, answers, strict=True):
            if not job.future.done():
                job.future.set_result(Computed(answer, 1000 * (began - job.entered), took))

    async def _perform(self, task: _Task) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answer = await self._worker.run(task.function)
        except Exception as error:
            if not task.future.done():
                task.future.set_exception(error)
            return
        if not task.future.done():
            now = loop.time()
            task.future.set_result(Computed(answer, 1000 * (began - task.entered), 1000 * (now - began)))

    def _count_coming(self, change: int) -> None:
        self._coming += change
        self._changed.set()


class Place:
    """A place in the queue, of one image."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._held: Hold = batcher.places.hold()
        self._held.take()
        self._is_coming = True
        batcher._count_coming(1)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:
        self.leave()

    def arrive(self) -> None:
        """Say that the image is decoded, or will not be."""
        if self._is_coming:
            self._is_coming = False
            self._batcher._count_coming(-1)

    def leave(self) -> None:
        """Free the place."""
        self.arrive()
        self._held.release()
