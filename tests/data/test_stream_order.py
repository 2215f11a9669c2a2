"""An epoch of a stream: shared out, begun again where it is short, and gone on with at any batch."""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conformer_vision.data.base import NOT_COUNTED
from conformer_vision.data.handover import Batch
from conformer_vision.data.images import BrokenImageError
from conformer_vision.data.loader import evaluation_loader, training_loader
from conformer_vision.data.order import Share
from conformer_vision.data.stream import ImageStream, StreamedImage
from conformer_vision.data.stream_order import StreamOrder
from conformer_vision.errors import UserError


class Numbers(ImageStream):
    """Images whose colour is their number; part ``p`` of ``n`` has every n-th, or what ``cut`` says."""

    classes = ("a", "b", "c")

    def __init__(
        self, count: int, *, broken: tuple[int, ...] = (), known: bool = True, lengths: tuple[int, ...] = ()
    ) -> None:
        self.length = count if known else None
        self._count = count
        self._broken = broken
        self._lengths = lengths

    def read(self, *, seed: int | None, part: int, parts: int, start: int = 0) -> Iterator[StreamedImage]:
        numbers = list(range(part, self._count, parts))
        if self._lengths:
            assert parts == len(self._lengths)
            first = sum(self._lengths[:part])
            numbers = list(range(first, first + self._lengths[part]))
        if seed is not None:
            numbers = np.random.default_rng((seed, part)).permutation(numbers).tolist()
        for number in numbers[start:]:
            name = f"image {number}"
            image: Any = Image.new("RGB", (4, 4), (number, 0, 0))
            if number in self._broken:
                image = BrokenImageError(f"{name}: cannot be read")
            yield StreamedImage(name, image, number % 3)


def noisy(image: Image.Image) -> Tensor:
    """The number, and what the augmentation drew."""
    return torch.tensor([float(np.asarray(image)[0, 0, 0]), float(torch.rand(()))]).reshape(2, 1, 1)


def epoch(loader: Any) -> list[Batch]:
    return list(loader)


def seen(batches: list[Batch]) -> list[list[int]]:
    return [batch.images[:, 0].flatten().int().tolist() for batch in batches]


def flat(batches: list[Batch]) -> list[int]:
    return [number for batch in seen(batches) for number in batch]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in zip(a, b, strict=True)
    )


def loader(stream: ImageStream, **options: Any) -> Any:
    return training_loader(stream, noisy, **{"batch_size": 4, "workers": 0, "seed": 0} | options)


# ---- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_has_equally_many_batches_everywhere(world_size: int, accumulate: int) -> None:
    stream = Numbers(50)
    ranks = [
        epoch(loader(stream, batch_size=8, share=Share(rank, world_size), accumulate=accumulate))
        for rank in range(world_size)
    ]
    assert {len(rank) for rank in ranks} == {50 // 8 * accumulate}
    assert {len(batch.labels) for rank in ranks for batch in rank} == {8 // world_size // accumulate}
    numbers = [number for rank in ranks for batch in seen(rank) for number in batch]
    assert len(numbers) == len(set(numbers)) == 48, "no image twice where parts are equally long"
    for rank in ranks:
        for batch in rank:
            assert batch.labels.tolist() == (batch.images[:, 0].flatten().int() % 3).tolist()
            assert batch.indices.tolist() == [-1] * len(batch.labels)


def test_every_epoch_has_its_own_order_and_augmentation() -> None:
    made = loader(Numbers(40))
    first, second = epoch(made), epoch(made)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(40))
    assert seen(first) != seen(second)
    assert same(first, epoch(loader(Numbers(40))))
    assert not same(first, epoch(loader(Numbers(40), seed=1)))
    drawn = [float(x) for batch in first + second for x in batch.images[:, 1].flatten()]
    assert len(set(drawn)) == len(drawn), "no two images are augmented alike"


def test_epoch_images() -> None:
    stream = Numbers(40)
    assert len(loader(stream)) == 10
    assert len(loader(stream, epoch_images=19)) == len(epoch(loader(stream, epoch_images=19))) == 4
    longer = epoch(loader(stream, epoch_images=100))
    assert len(longer) == 25
    counts = Counter(flat(longer))
    assert counts.keys() == set(range(40))
    assert set(counts.values()) == {2, 3}, "it begins again when all were seen"


def test_unknown_length_needs_epoch_images() -> None:
    stream = Numbers(40, known=False)
    with pytest.raises(UserError, match=r"length of this stream is unknown; give epoch_images") as caught:
        loader(stream)
    assert "\n" not in str(caught.value)
    assert len(epoch(loader(stream, epoch_images=12))) == 3
    with pytest.raises(UserError, match="batch_size 13 is more than the 12 images of an epoch"):
        loader(stream, epoch_images=12, batch_size=13)
    with pytest.raises(UserError, match="batch_size 13: cannot be shared evenly by 2 processes; give 12"):
        loader(stream, epoch_images=20, batch_size=13, share=Share(0, 2))


def test_parts_that_end_early_begin_again() -> None:
    """Shards of different lengths: a process whose part is short shows it again, in another order."""
    stream = Numbers(40, lengths=(34, 6))
    long, short = (flat(epoch(loader(stream, share=Share(rank, 2)))) for rank in range(2))
    assert len(long) == len(short) == 20
    assert len(set(long)) == 20
    assert set(short) == set(range(34, 40))
    passes = [short[0:6], short[6:12], short[12:18]]
    assert all(sorted(once) == list(range(34, 40)) for once in passes)
    assert passes[0] != passes[1]


def test_empty_part_ends() -> None:
    order = StreamOrder(Numbers(6, lengths=(6, 0)), 2, seed=0, share=Share(1, 2))
    assert list(order.items()) == []


@pytest.mark.parametrize("lengths", [(), (30, 10), (39, 1)], ids=["even", "uneven", "very uneven"])
@pytest.mark.parametrize("rank", [0, 1])
def test_going_on_at_any_batch_gives_the_rest(rank: int, lengths: tuple[int, ...]) -> None:
    """Also where a part had begun again by then, once or several times."""
    stream = Numbers(40, lengths=lengths)
    options: Any = {"share": Share(rank, 2), "batch_size": 4, "epoch_images": 60}
    whole = loader(stream, **options)
    whole.position = lambda: (3, 0)
    batches = epoch(whole)
    assert len(batches) == 15
    for start in range(16):
        rest = loader(stream, **options)
        rest.position = lambda start=start: (3, start)
        assert same(epoch(rest), batches[start:]), start


@pytest.mark.parametrize("workers", [1, 2])
def test_going_on_with_workers(workers: int) -> None:
    """A worker begins with the part whose turn it is."""
    options: Any = {"workers": workers, "share": Share(1, 2), "epoch_images": 60}
    stream = Numbers(41)
    whole = loader(stream, **options)
    first, second = epoch(whole), epoch(whole)
    assert len(first) == len(second) == 15
    assert not same(first, second)
    rest = loader(stream, **options)
    for number, start in ((0, 7), (1, 8), (1, 15)):  # workers stay over epochs
        rest.position = lambda number=number, start=start: (number, start)
        assert same(epoch(rest), (first, second)[number][start:]), (number, start)


@pytest.mark.parametrize("first_broken", [False, True])
def test_going_on_with_broken_images(first_broken: bool) -> None:
    """A broken image changes no other: its place is filled, wherever the run was left."""
    items = StreamOrder(Numbers(40), 4, seed=0, share=Share()).items()
    order = [item.name for item, _ in islice(items, 40)]
    broken = tuple(
        int(order[place].split()[1]) for place in ((0, 1, 12, 13) if first_broken else (5, 12, 13))
    )
    stream = Numbers(40, broken=broken)
    whole = epoch(loader(stream))
    assert len(whole) == 10
    numbers = flat(whole)
    assert not set(numbers) & set(broken)
    wanted = [int(name.split()[1]) for name in order]
    assert all(mine == n for mine, n in zip(numbers, wanted, strict=True) if n not in broken)
    assert sorted(line for batch in whole for line in batch.broken) == sorted(
        f"image {number}: cannot be read" for number in broken
    )
    for start in range(1, 10):
        rest = loader(stream)
        rest.position = lambda start=start: (0, start)
        assert same(epoch(rest), whole[start:]), start


def test_nothing_but_broken_images_ends() -> None:
    stream = Numbers(10, broken=tuple(range(10)))
    with pytest.raises(BrokenImageError, match=r"image \d: cannot be read; nor can the 99 images") as caught:
        epoch(loader(stream))
    assert "\n" not in str(caught.value)


def test_order_goes_to_a_spawned_worker() -> None:
    order = StreamOrder(Numbers(10), 2, seed=0, share=Share())
    assert order.per_batch == 2
    assert pickle.loads(pickle.dumps(order.stream)).length == 10


# ---- evaluation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_evaluation_has_every_image_once(world_size: int, workers: int) -> None:
    batches: list[Batch] = []
    for rank in range(world_size):
        batches += epoch(
            evaluation_loader(
                Numbers(23, known=False), noisy, batch_size=4, workers=workers, share=Share(rank, world_size)
            )
        )
    assert sorted(flat(batches)) == list(range(23))


def test_broken_image_of_evaluation_is_not_counted() -> None:
    made = evaluation_loader(Numbers(6, broken=(2,)), noisy, batch_size=4, workers=0)
    for _ in range(2):
        batches = epoch(made)
        labels = torch.cat([batch.labels for batch in batches]).tolist()
        assert labels == [0, 1, NOT_COUNTED, 0, 1, 2]
        assert [batch.broken for batch in batches] == [["image 2: cannot be read"], []]
        assert batches[0].images[2].eq(0).all()


def test_all_images_of_evaluation_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Callable[[], Any] = lambda: evaluation_loader(  # noqa: E731
        Numbers(3, broken=(0, 1, 2)), noisy, batch_size=4, workers=0
    )
    (batch,) = epoch(made())
    assert batch.labels.tolist() == [NOT_COUNTED] * 3
    assert len(batch.broken) == 3
