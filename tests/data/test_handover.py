"""Reading processes that fail: killed, or on a machine without memory, descriptors or processes."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import FrameType

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from batches import failure, same
from conformer_vision.data import evaluation_loader, training_loader
from conformer_vision.data.handover import Batch, WaitingEnded
from conformer_vision.data.images import ReadingError, open_image
from conformer_vision.data.loader import ImageLoader
from conformer_vision.errors import UserError
from image_sets import opened
from machines import descriptors, in_fork, shared_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs processes as Linux has them")


def transform(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 64, 64), float(image.getpixel((3, 4))[0]))  # type: ignore[index]


def loader(workers: int = 2, *, change: Callable[[Image.Image], torch.Tensor] = transform) -> ImageLoader:
    return evaluation_loader(opened("digits", split="val"), change, batch_size=20, workers=workers)


def read() -> tuple[list[Batch], int, list[str]]:
    """All batches, the number of workers that read them, and what was printed."""
    reading = loader()
    with redirect_stderr(io.StringIO()) as printed:
        batches = [batch._replace(images=batch.images.clone()) for batch in reading]
    return batches, reading.num_workers, printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def alone() -> list[Batch]:
    return list(loader(0))


@pytest.mark.parametrize("size", ["1500k", "400k", "100k"])
def test_a_small_shared_memory_is_replaced_by_files(size: str, alone: list[Batch]) -> None:
    """A batch takes 960 kB; nothing is left behind."""
    folder = Path("/dev/shm")

    def left() -> tuple[tuple[list[Batch], int, list[str]], list[str]]:
        return read(), [path.name for path in folder.iterdir() if path.name.startswith("torch")]

    (batches, workers, lines), files = in_fork(left, shared_memory(size))
    assert same(batches, alone)
    assert workers == 2
    assert len(lines) == 1 and "shared memory cannot hold the batches" in lines[0]
    assert not files


def test_without_any_shared_memory_the_main_process_reads(alone: list[Batch]) -> None:
    """Processes need a few bytes of it for their locks."""
    batches, workers, lines = in_fork(read, shared_memory("4k"))
    assert same(batches, alone)
    assert (workers, len(lines)) == (0, 1)
    assert "reading with 0 workers instead of 2: No space left on device" in lines[0]


@pytest.mark.parametrize(("number", "workers"), [(40, 2), (23, 1), (4, 0)])
def test_few_descriptors(number: int, workers: int, alone: list[Batch]) -> None:
    batches, used, lines = in_fork(read, descriptors(number))
    assert same(batches, alone)
    assert used == workers
    assert ("too many open files" in lines[0]) == (workers < 2)


def test_processes_that_cannot_be_started(alone: list[Batch]) -> None:
    """As in a container with a limit of processes; those that were started are ended."""

    def few() -> tuple[tuple[list[Batch], int, list[str]], int]:
        fork, count = os.fork, 0

        def limited() -> int:
            nonlocal count
            count += 1
            if count == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = limited
        return read(), count

    (batches, workers, lines), count = in_fork(few)
    assert same(batches, alone)
    assert (workers, count) == (1, 3)
    assert "reading with 1 workers instead of 2: Resource temporarily unavailable" in lines[0]


# A worker's own handler of SIGBUS and SIGSEGV, torch's, may say so before the process dies.
TORCH_ON_SIGNALS = "ERROR: Unexpected "


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["SIGKILL", "SIGBUS", "SIGSEGV"])
def test_a_killed_worker_is_one_line(
    name: str, alone: list[Batch], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long torch waits at the end for each process that is left, and for a batch before it looks at them.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
    reading = loader()

    def killing() -> Iterator[Batch]:
        for number, batch in enumerate(reading):
            if not number:
                os.kill(reading._iterator._workers[1].pid, signal.Signals[name])  # type: ignore[union-attr]
            yield batch

    assert failure(killing()).startswith(f"ReadingError: a reading process was ended by {name}: ")
    assert same(list(reading), alone), "another iteration starts other workers"
    printed = capfd.readouterr()
    by_us = [line for line in printed.err.strip("\n\0").splitlines() if not line.startswith(TORCH_ON_SIGNALS)]
    assert (printed.out, by_us) == ("", [])


@contextmanager
def impatient() -> Iterator[None]:
    """A wait that ends after a moment."""

    def end(number: int, frame: FrameType | None) -> None:
        raise WaitingEnded

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def handled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loader of torch's own is in use, whose handler raises when a process of any loader ends."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    other = iter(DataLoader([1, 2, 3], num_workers=1))
    next(other)
    assert signal.getsignal(signal.SIGCHLD) != before
    yield
    del other
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.parametrize("taken", [0, 2], ids="after {} batches".format)
@pytest.mark.parametrize("reads_on", [True, False])
def test_a_worker_that_hangs_is_given_up(kind: str, taken: int, reads_on: bool) -> None:
    """In an epoch that is not the first, as later ones wait for the workers to be ready."""
    make = {"training": _training, "evaluation": lambda workers, change: loader(workers, change=change)}[kind]
    reading, here = make(2, change=transform), make(0, change=transform)
    reading.reads_on = lambda: reads_on
    assert same(list(reading), expected := list(here)), "the first epoch"
    if kind == "training":
        reading.position = here.position = lambda: (4, 3)
        expected = list(here)
    workers = reading._workers()
    batches = []
    if taken:
        following = iter(reading)
        batches += [next(following) for _ in range(taken)]
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    reading.waiting = impatient
    if not taken:
        following = iter(reading)
    if reads_on:
        batches += following
        assert same(batches, expected)
    else:
        with pytest.raises(WaitingEnded):
            batches += following
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == -signal.SIGKILL


@pytest.mark.usefixtures("handled")
@pytest.mark.timeout(60)
def test_a_worker_that_hangs_beside_another_loader() -> None:
    test_a_worker_that_hangs_is_given_up("training", 2, True)


@pytest.mark.usefixtures("handled")
@pytest.mark.timeout(60)
def test_a_killed_worker_beside_another_loader(
    alone: list[Batch], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_killed_worker_is_one_line("SIGKILL", alone, capfd, monkeypatch)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(24, "Too many open files"), "too many open files; raise the limit"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (UserError("image 3 is not an image"), "image 3 is not an image"),
    ],
)
def test_what_a_worker_lacks_is_one_line(workers: int, error: Exception, line: str) -> None:
    def lacking(image: Image.Image) -> torch.Tensor:
        raise error

    for make in (loader, _training):
        assert line in failure(make(workers, change=lacking))


def _training(workers: int, *, change: Callable[[Image.Image], torch.Tensor]) -> ImageLoader:
    return training_loader(opened("digits", split="val"), change, batch_size=20, workers=workers, seed=0)


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    def wrong(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    text = ""
    try:
        list(loader(1, change=wrong))
    except ZeroDivisionError as error:
        text = str(error)
    assert "in wrong\n" in text


def test_no_descriptor_is_not_a_broken_image(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def opening() -> str:
        held = [os.dup(0)]
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        try:
            open_image(tmp_path / "a.png")
        except ReadingError as error:
            return str(error)
        finally:
            for number in held:  # no range: descriptors of others may lie between them
                os.close(number)
        return "it was read"

    line = in_fork(opening, descriptors(5))
    assert line.endswith("a.png cannot be read: too many open files; raise the limit (ulimit -n)")
