"""Copies by pixels and by looks; the oracle compares every image with every other one."""

import time
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from conformer_vision.check.duplicates import Copies, find_copies, near_pairs, normalise
from conformer_vision.check.inspect import _fingerprint
from image_sets import patches


def copies_among(images: list[Image.Image], *, distance: int = 4) -> Copies:
    digests, hashes, _ = zip(*map(_fingerprint, images), strict=True)
    return find_copies(digests, np.array(hashes, np.uint64), thumbnails(images), distance=distance)


def thumbnails(images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    return np.array([list(_fingerprint(image).thumbnail) for image in images], np.uint8)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def all_near_pairs(hashes: NDArray[np.uint64], distance: int) -> list[list[int]]:
    return sorted(sorted(pair) for piece in near_pairs(hashes, distance=distance) for pair in piece.tolist())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, 2**32), st.integers(1, 50))
def test_near_pairs_are_those_of_all_comparisons(distance: int, seed: int, originals: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, originals, dtype=np.uint64)
    hashes = hashes[rng.integers(0, originals, 120)]
    for flips in range(12):  # from 0 to 12 bits of each are turned
        bits = np.uint64(1) << rng.integers(0, 64, len(hashes), dtype=np.uint64)
        hashes = np.where(rng.random(len(hashes)) < flips / 24, hashes ^ bits, hashes)
    wanted = [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= distance
    ]
    assert all_near_pairs(hashes, distance) == wanted


def test_copies_that_people_make() -> None:
    image = patches(0, (300, 200))
    images = [
        image,
        *(patches(seed, (300, 200)) for seed in range(1, 40)),
        image.copy(),
        jpeg(image, 40),
        image.resize((120, 80)),
        ImageEnhance.Brightness(image).enhance(0.8),
        ImageEnhance.Contrast(image).enhance(0.7),
    ]
    found = copies_among(images)
    assert found.groups == ((0, 40, 41, 42, 43, 44),)
    assert found.first.tolist() == [*range(40), 0, *range(41, 45)]
    assert {tuple(pair) for pair in found.pairs.tolist()} >= {(0, other) for other in (41, 42, 43, 44)}
    assert copies_among([image, images[41]], distance=0).groups in ((), ((0, 1),))


def test_images_of_little_detail_are_no_copies() -> None:
    rng = np.random.default_rng(0)

    def image(values: NDArray[np.float64]) -> Image.Image:
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")

    y = np.linspace(0, 1, 64)[:, None] * np.ones((1, 64))
    images = [image(np.full((64, 64), float(tone))) for tone in range(0, 250, 5)]
    images += [image(100 + 100 * y + tone) for tone in range(50)]  # clear skies
    images += [image(128 + rng.normal(0, 2, (64, 64))) for _ in range(100)]  # grain
    assert copies_among(images, distance=8).groups == ()
    assert not normalise(thumbnails(images))[1].any()


def test_equal_pixels_are_copies_whatever_the_detail() -> None:
    images = [Image.new("RGB", (20, 20), colour) for colour in ("white", "black", "white", "white")]
    found = copies_among(images)
    assert found.groups == ((0, 2, 3),)
    assert found.pairs.shape == (0, 2)


def test_equal_hashes_alone_are_no_copies() -> None:
    looks = thumbnails(patches(seed) for seed in range(300))
    found = find_copies([row.tobytes() for row in looks], np.full(300, 12345, np.uint64), looks, distance=4)
    assert found.groups == ()


def test_images_without_a_digest_take_no_part() -> None:
    nothing = np.zeros((3, 256), np.uint8)
    assert find_copies([None] * 3, np.zeros(3, np.uint64), nothing, distance=4).groups == ()
    empty = find_copies([], np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8), distance=4)
    assert empty.groups == ()


def test_a_chain_is_one_group() -> None:
    hashes = np.array([0b0, 0b1111, 0b11111111, 1 << 40 | 0b11111111], np.uint64)
    digests: list[bytes | None] = [bytes([number]) for number in range(4)]
    found = find_copies(digests, hashes, thumbnails([patches(0)] * 4), distance=4)
    assert found.groups == ((0, 1, 2, 3),)
    assert found.pairs.tolist() == [[0, 1], [1, 2], [2, 3]]


def test_a_hundred_thousand_images_take_no_quadratic_time() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[77_777] = hashes[3] ^ np.uint64(0b1011)
    began = time.process_time()
    assert all_near_pairs(hashes, 4) == [[3, 77_777]]
    assert time.process_time() - began < 10, "all comparisons take minutes"


@pytest.mark.parametrize("distance", [0, 8])
def test_the_ends_of_the_range(distance: int) -> None:
    hashes = np.array([5, 5, 5 ^ 0b11111111, 5 ^ (0b11111111 << 30 | 2)], np.uint64)
    wanted = [[0, 1]] if distance == 0 else [[0, 1], [0, 2], [1, 2]]
    assert all_near_pairs(hashes, distance) == wanted
