"""What every streamed format promises."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from conformer_vision.data import BrokenImageError, Splitting
from conformer_vision.data.streams import open_stream
from conformer_vision.errors import UserError

WriteSet = Callable[..., str]
kinds = pytest.mark.parametrize("kind", ["hub", "webdataset", "litdata"])


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that small sets overflow."""
    monkeypatch.setattr("conformer_vision.data.streams.base.SHUFFLE_BUFFER", 5)


@kinds
@pytest.mark.parametrize("lengths", [[7], [6, 3], [4, 4, 4], [5, 5, 5, 1]], ids=len)
def test_every_image_once_in_any_number_of_parts(
    kind: str, lengths: list[int], write_set: WriteSet, tools: Any
) -> None:
    stream = tools.open(write_set(kind, lengths))
    assert stream.classes == ("x", "y", "z")
    assert stream.parts == len(lengths)
    assert stream.length == (sum(lengths) if kind == "litdata" else None)
    for parts in range(1, 6):
        for seed in (None, 0, 3):
            items = [item for part in range(parts) for item in stream.read(seed=seed, part=part, parts=parts)]
            found = tools.numbers(items)
            assert sorted(found) == list(range(sum(lengths))), (parts, seed)
            assert [item.label for item in items] == [number % 3 for number in found]
            assert len({item.name for item in items}) == len(items)
    assert tools.numbers(list(stream.read(seed=None, part=0, parts=1))) == list(range(sum(lengths)))


@kinds
def test_start_equals_dropping_images_and_decodes_none(
    kind: str, write_set: WriteSet, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformer_vision.data.streams import base

    stream = tools.open(write_set(kind, [9, 9, 4]))
    decoded: list[str] = []

    def counting(source: Any, *, name: str) -> Any:
        decoded.append(name)
        return original(source, name=name)

    original = base.open_image
    monkeypatch.setattr(base, "open_image", counting)
    for seed in (None, 1):
        for part, parts in ((0, 1), (1, 2), (2, 5)):
            whole = list(stream.read(seed=seed, part=part, parts=parts))
            for start in range(len(whole) + 2):
                decoded.clear()
                rest = list(stream.read(seed=seed, part=part, parts=parts, start=start))
                names = [item.name for item in whole[start:]]
                assert [item.name for item in rest] == decoded == names, (seed, part, start)


@kinds
def test_seed_decides_the_order(kind: str, write_set: WriteSet, tools: Any) -> None:
    stream = tools.open(write_set(kind, [20, 20, 20]))

    def order(seed: int | None) -> list[int]:
        return tools.numbers(list(stream.read(seed=seed, part=0, parts=1)))  # type: ignore[no-any-return]

    assert order(1) == order(1) != order(2)
    assert order(None) == list(range(60))
    # Shards are permuted, and images within them.
    shards = {tuple(dict.fromkeys(number // 20 for number in order(seed))) for seed in range(6)}
    assert len(shards) > 2
    moved = sum(abs(a - b) > 1 for a, b in zip(order(1), order(1)[1:], strict=False))
    assert moved > 30


READERS = """
from torch.utils.data import IterableDataset, get_worker_info

class Readers(IterableDataset):
    def __init__(self, streams):
        self.streams = streams

    def __iter__(self):
        info = get_worker_info()
        for stream in self.streams:
            for item in stream.read(seed=1, part=info.id, parts=info.num_workers):
                yield info.id, item.name, item.image.getpixel((0, 0))[0], item.label
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_dataloader_read_what_this_process_does(
    method: str, write_set: WriteSet, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All formats in one loader, as a new process takes seconds to import torch."""
    from torch.utils.data import DataLoader

    monkeypatch.setattr("conformer_vision.data.streams.base.SHUFFLE_BUFFER", 1000)  # as in a new process
    (tmp_path / "stream_readers.py").write_text(READERS)
    monkeypatch.syspath_prepend(tmp_path)  # new processes get this path too
    readers = import_module("stream_readers").Readers
    kinds = ["hub", "webdataset", *(["litdata"] if find_spec("litdata") else [])]
    streams = [tools.open(write_set(kind, [5, 5, 2])) for kind in kinds]
    workers = 2 if method == "fork" else 1
    here = [
        [item.name for stream in streams for item in stream.read(seed=1, part=part, parts=workers)]
        for part in range(workers)
    ]
    loader = DataLoader(
        readers(streams), batch_size=None, num_workers=workers, multiprocessing_context=method
    )
    there: list[list[str]] = [[] for _ in range(workers)]
    for worker, name, red, label in loader:
        there[worker].append(name)
        assert label == red % 3
    assert there == here


@kinds
@pytest.mark.parametrize(
    ("lengths", "val_fraction", "whole"), [([4] * 10, 0.2, True), ([40] * 3, 0.1, False), ([60], 0.3, False)]
)
def test_one_split_is_cut_in_two(
    kind: str, lengths: list[int], val_fraction: float, whole: bool, write_set: WriteSet, tools: Any
) -> None:
    spec = write_set(kind, lengths)

    def read(split: str, seed: int) -> tuple[list[int], Any]:
        stream = tools.open(spec, split, val_fraction=val_fraction, seed=seed)
        items = [item for part in range(3) for item in stream.read(seed=0, part=part, parts=3)]
        if kind == "litdata":
            assert stream.length == len(items)
        return sorted(tools.numbers(items)), stream

    train, train_stream = read("train", 0)
    val, val_stream = read("val", 0)
    assert sorted(train + val) == list(range(sum(lengths)))
    assert len(val) == pytest.approx(sum(lengths) * val_fraction, rel=0 if whole else 0.6)
    assert val == read("val", 0)[0] != read("val", 1)[0]
    if whole:
        assert {number // 4 for number in val}.isdisjoint(number // 4 for number in train)
        assert (train_stream.parts, val_stream.parts) == (8, 2)
    else:
        assert train_stream.parts == val_stream.parts == len(lengths)


@kinds
def test_classes_of_a_model_are_matched_by_name(kind: str, write_set: WriteSet, tools: Any) -> None:
    spec = write_set(kind, [4])
    stream = tools.open(spec, classes=("w", "z", "y", "x"))
    assert stream.classes == ("w", "z", "y", "x")
    assert [item.label for item in stream.read(seed=None, part=0, parts=1)] == [3, 2, 1, 3]
    with pytest.raises(UserError, match="does not know the class z"):
        tools.open(spec, classes=("x", "y"))


@kinds
def test_what_is_refused(kind: str, write_set: WriteSet, tools: Any) -> None:
    spec = write_set(kind, [4])
    with pytest.raises(UserError, match="cannot be cut into folds"):
        open_stream(spec, split="train", splitting=Splitting(folds=5), classes=None)
    stream = tools.open(spec)
    for arguments in ({"part": 2, "parts": 2}, {"part": -1, "parts": 2}, {"part": 0, "parts": 0}):
        with pytest.raises(UserError, match="part"):
            stream.read(seed=None, **arguments)
    with pytest.raises(UserError, match="start -1"):
        stream.read(seed=None, part=0, parts=1, start=-1)


@pytest.mark.parametrize("prefix", ["wds", "litdata", "hfids"])
def test_nothing_there(prefix: str, tmp_path: Any, tools: Any) -> None:
    for spec in (f"{prefix}/", f"{prefix}/{tmp_path}/missing"):
        with pytest.raises(UserError) as caught:
            tools.open(spec)
        assert "\n" not in str(caught.value) and prefix in str(caught.value)


@pytest.mark.parametrize(("kind", "package"), [("webdataset", "webdataset"), ("litdata", "litdata")])
def test_a_missing_package_is_named(
    kind: str, package: str, write_set: WriteSet, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write_set(kind, [2])
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'conformer-vision\[scale\]'"):
        list(tools.open(spec).read(seed=None, part=0, parts=1))


@kinds
def test_a_broken_image_is_an_item(
    kind: str, write_set: WriteSet, tools: Any, encode: Callable[..., bytes]
) -> None:
    spec = write_set(kind, [4], images={1: encode((1, 0, 7))[:40], 2: b""})
    items = list(tools.open(spec).read(seed=None, part=0, parts=1))
    assert [isinstance(item.image, BrokenImageError) for item in items] == [False, True, True, False]
    assert [item.label for item in items] == [0, 1, 2, 0]
    for item in items[1:3]:
        assert str(item.image).startswith(item.name) and "\n" not in str(item.image)
