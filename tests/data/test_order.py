"""Which images make which batch: held against sets and counts, not against another shuffle."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conformer_vision.data.order import Draw, EvaluationOrder, Share, TrainingOrder, images_per_batch
from conformer_vision.errors import UserError

COUNTS = st.integers(1, 150)
WORLDS = st.integers(1, 4)
ACCUMULATE = st.integers(1, 3)
EACH = st.integers(1, 5)
SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)
QUICK = settings(max_examples=60, deadline=None)


def order(images: int, batch_size: int, **options: Any) -> TrainingOrder:
    """Of images whose labels are 0, 1, 2, 0, ..."""
    epoch, start = options.pop("epoch", 0), options.pop("start", 0)
    made = TrainingOrder([number % 3 for number in range(images)], batch_size, **{"seed": 0} | options)
    made.begin(epoch, start)
    return made


def everywhere(images: int, batch_size: int, world_size: int, **options: Any) -> list[list[list[Draw]]]:
    """The batches of every process."""
    return [
        list(order(images, batch_size, share=Share(rank, world_size), **options))
        for rank in range(world_size)
    ]


# ---- training --------------------------------------------------------------------------------------


@QUICK
@given(COUNTS, WORLDS, ACCUMULATE, EACH, SEEDS, EPOCHS)
def test_an_epoch_has_each_image_at_most_once(
    images: int, world_size: int, accumulate: int, each: int, seed: int, epoch: int
) -> None:
    batch_size = world_size * accumulate * each
    assume(batch_size <= images)
    ranks = everywhere(images, batch_size, world_size, accumulate=accumulate, seed=seed, epoch=epoch)
    numbers = [draw.number for rank in ranks for batch in rank for draw in batch]
    assert len(numbers) == len(set(numbers)) == images // batch_size * batch_size
    assert set(numbers) <= set(range(images))
    for rank in ranks:
        assert len(rank) == images // batch_size * accumulate
        assert {len(batch) for batch in rank} == {each}
        assert all(draw.counted and draw.seed is not None for batch in rank for draw in batch)


@QUICK
@given(COUNTS, WORLDS, ACCUMULATE, EACH, SEEDS, EPOCHS, st.sampled_from(["shuffle", "balanced"]))
def test_a_step_of_several_processes_is_that_of_one(
    images: int, world_size: int, accumulate: int, each: int, seed: int, epoch: int, sampling: str
) -> None:
    """With the same augmentation of each image: more processes change the speed, not the training."""
    batch_size = world_size * accumulate * each
    assume(batch_size <= images)
    options = {"seed": seed, "epoch": epoch, "sampling": sampling}
    ranks = everywhere(images, batch_size, world_size, accumulate=accumulate, **options)
    for step, alone in enumerate(order(images, batch_size, **options)):
        part = slice(step * accumulate, (step + 1) * accumulate)
        together = [draw for rank in ranks for batch in rank[part] for draw in batch]
        assert Counter(together) == Counter(alone)


@QUICK
@given(st.data(), st.integers(12, 150), WORLDS, ACCUMULATE, EPOCHS)
def test_beginning_later_leaves_batches_out(
    data: st.DataObject, images: int, world_size: int, accumulate: int, epoch: int
) -> None:
    options: Any = {"share": Share(world_size - 1, world_size), "accumulate": accumulate, "epoch": epoch}
    whole = list(order(images, world_size * accumulate, **options))
    start = data.draw(st.integers(0, len(whole)))
    later = order(images, world_size * accumulate, start=start, **options)
    assert list(later) == whole[start:]
    assert len(later) == len(whole), "the length of an epoch is that from its beginning"


def test_seed_and_epoch_decide() -> None:
    def drawn(**options: Any) -> list[list[Draw]]:
        return list(order(60, 10, **options))

    assert drawn() == drawn()
    assert drawn(seed=1) != drawn()
    assert drawn(epoch=1) != drawn()
    assert drawn(seed=1, epoch=0) != drawn(seed=0, epoch=1)
    seeds = [draw.seed for epoch in range(50) for batch in drawn(epoch=epoch) for draw in batch]
    assert len(set(seeds)) == len(seeds), "no two images, in no two epochs, are augmented alike"


def test_balanced_draws_the_classes_evenly() -> None:
    labels = [0] * 9000 + [1] * 900 + [3] * 100  # no image has label 2
    batches = TrainingOrder(labels, 100, seed=0, sampling="balanced")
    drawn = [draw.number for batch in batches for draw in batch]
    counts = Counter(labels[number] for number in drawn)
    deviation = (10_000 * (1 / 3) * (2 / 3)) ** 0.5  # of a binomial count
    assert counts.keys() == {0, 1, 3}
    assert all(abs(count - 10_000 / 3) < 5 * deviation for count in counts.values())
    rare = Counter(number for number in drawn if labels[number] == 3)
    assert len(rare) == 100, "all images of a class take part"
    assert max(rare.values()) < 70, "and equally often: 33 times on the mean"


@QUICK
@given(COUNTS, st.integers(2, 4), EACH, EPOCHS)
def test_repeats_show_a_image_again_augmented_anew(images: int, repeats: int, each: int, epoch: int) -> None:
    world_size = 4
    batch_size = world_size * each
    assume(batch_size <= images)
    ranks = everywhere(images, batch_size, world_size, repeats=repeats, epoch=epoch)
    assert all(len(rank) == images // batch_size for rank in ranks), "the length of an epoch stays"
    places: dict[int, list[int]] = {}
    seeds: list[int | None] = []
    for rank, batches in enumerate(ranks):
        for draw in (draw for batch in batches for draw in batch):
            places.setdefault(draw.number, []).append(rank)
            seeds.append(draw.seed)
    assert len(seeds) == len(set(seeds))
    # All but the one that the end of the epoch cuts come so often.
    assert sorted(map(len, places.values()))[1:] == [repeats] * (len(places) - 1)
    assert all(len(set(ranks)) == len(ranks) for ranks in places.values()), "to different processes"


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "message"),
    [
        (10, 4, 1, "batch_size 10: cannot be shared evenly by 4 processes; give 8"),
        (10, 1, 3, "batch_size 10: cannot be shared evenly by accumulate 3; give 9"),
        (13, 2, 3, "batch_size 13: cannot be shared evenly by 2 processes and accumulate 3; give 12"),
        (2, 2, 2, "batch_size 2: cannot be shared evenly by 2 processes and accumulate 2; give 4"),
    ],
)
def test_batches_that_cannot_be_shared(
    batch_size: int, world_size: int, accumulate: int, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        images_per_batch(batch_size, world_size, accumulate)
    assert str(caught.value) == message
    with pytest.raises(UserError) as caught:
        order(100, batch_size, share=Share(0, world_size), accumulate=accumulate)
    assert str(caught.value) == message


def test_batch_of_more_than_the_images() -> None:
    with pytest.raises(UserError, match="batch_size 7 is more than the 6 images; give a smaller one"):
        order(6, 7)
    assert len(order(6, 6)) == 1


# ---- evaluation ------------------------------------------------------------------------------------


@QUICK
@given(st.integers(0, 100), st.integers(1, 20), st.integers(1, 5))
def test_evaluation_counts_every_image_once(images: int, batch_size: int, world_size: int) -> None:
    orders = [
        EvaluationOrder(images, batch_size, share=Share(rank, world_size)) for rank in range(world_size)
    ]
    ranks = [list(each) for each in orders]
    counted = [draw.number for rank in ranks for batch in rank for draw in batch if draw.counted]
    assert sorted(counted) == list(range(images))
    sizes = {tuple(map(len, rank)) for rank in ranks}
    assert len(sizes) == 1, "processes that wait for each other need equally many batches"
    assert all(size <= batch_size for size in sizes.pop())
    assert [len(each) for each in orders] == [len(rank) for rank in ranks]
    filling = [draw for rank in ranks for batch in rank for draw in batch if not draw.counted]
    assert len(filling) < world_size
    assert all(0 <= draw.number < images for draw in filling), "what fills up can be read"
    assert all(draw.seed is None for rank in ranks for batch in rank for draw in batch)


def test_evaluation_of_one_process_is_in_the_order_of_the_source() -> None:
    batches = list(EvaluationOrder(10, 4))
    assert [[draw.number for draw in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
