"""Find images that are copies of each other: with equal pixels, or alike to the eye.

Similar images have perceptual hashes (64 bits) within a small Hamming distance. The hash says little about
images with little detail, so every pair is verified on grey thumbnails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_DISTANCE = 8
"""With more, the bands of the hash get so short that 100,000 images take minutes."""

_LEAST_DETAIL = 3.0
"""Standard deviation of a grey thumbnail (0..255) without its slope; below it only pixels are compared."""
_MOST_DIFFERENT = 0.25
"""Largest mean difference between the thumbnails of two copies, in standard deviations.

On CIFAR-10's 60,000 images all 266 pairs within it have equal classes; by chance a tenth would."""
_BITS = 64
_BLOCK = 1 << 16
"""Thumbnails processed at a time."""


@dataclass(frozen=True)
class Copies:
    """Copies among numbered images.

    Attributes:
        groups: two or more images that are copies of each other, directly or through others, ascending.
        pairs: (P, 2), images that look alike but differ in pixels, the smaller number first;
            of images with equal pixels, only the first is listed.
        first: (N,), for each image the first one with equal pixels, which may be itself.
    """

    groups: tuple[tuple[int, ...], ...]
    pairs: NDArray[np.int64]
    first: NDArray[np.int64]


def find_copies(
    digests: Sequence[bytes | None],
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    *,
    distance: int,
) -> Copies:
    """Find the copies among N images in about N log N steps.

    Args:
        digests: equal for equal pixels; None for an image to ignore.
        hashes: (N,), perceptual hashes.
        thumbnails: (N, T), grey values of a square, row by row.
        distance: bits by which the hashes of near duplicates may differ, from 0 to `MAX_DISTANCE`.
    """
    seen: dict[bytes, int] = {}
    first = np.fromiter(
        (i if digest is None else seen.setdefault(digest, i) for i, digest in enumerate(digests)),
        dtype=np.int64,
        count=len(digests),
    )
    distinct = np.fromiter(seen.values(), dtype=np.int64, count=len(seen))
    looks, has_detail = normalise(thumbnails[distinct])
    detailed, looks = distinct[has_detail], looks[has_detail]
    found = [
        detailed[pairs[_alike(looks, pairs)]] for pairs in near_pairs(hashes[detailed], distance=distance)
    ]
    pairs = np.unique(np.sort(np.concatenate([np.empty((0, 2), np.int64), *found]), axis=1), axis=0)
    copies = np.flatnonzero(first != np.arange(len(first)))
    equal = np.stack([first[copies], copies], axis=1)
    return Copies(_groups(np.concatenate([equal, pairs])), pairs, first)


def _groups(pairs: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    """Group the numbers that pairs join, directly or through others."""
    numbers, compact = np.unique(pairs, return_inverse=True)
    left, right = compact.reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (left, right)), shape=(len(numbers), len(numbers)))
    count, labels = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(count)]
    for number, label in zip(numbers.tolist(), labels.tolist(), strict=True):
        groups[label].append(number)
    return tuple(map(tuple, groups))


def near_pairs(hashes: NDArray[np.uint64], *, distance: int) -> Iterator[NDArray[np.int64]]:
    """Yield, in pieces (P, 2), each pair of positions whose hashes differ in at most ``distance`` bits.

    Two such hashes agree in at least one of ``distance + 1`` bands of bits, so only hashes with an
    equal band are compared.
    """
    edges = [round(band * _BITS / (distance + 1)) for band in range(distance + 2)]
    masks = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    for number, mask in enumerate(masks):
        band = hashes & mask
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], hashes[order]
        left = np.arange(len(hashes))
        step = 0
        while left.size:  # each hash with its next neighbour in the band, then the one after, ...
            step += 1
            left = left[left + step < len(hashes)]
            left = left[band[left] == band[left + step]]
            differing = ordered[left] ^ ordered[left + step]
            near = np.unpackbits(differing.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) <= distance
            for earlier in masks[:number]:  # a band that has yielded this pair
                near &= (differing & earlier) != 0
            if near.any():
                yield np.stack([order[left[near]], order[left[near] + step]], axis=1)


def normalise(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Remove the brightness, slope and contrast in which copies may differ.

    The slope goes because all clear skies are alike.

    Args:
        thumbnails: (N, T), grey values of a square, row by row.

    Returns:
        The normalised values (N, T), and (N,), whether a thumbnail shows more than one tone or slope.
    """
    edge = math.isqrt(thumbnails.shape[1])
    y, x = np.mgrid[-1 : 1 : edge * 1j, -1 : 1 : edge * 1j]
    plane, _ = np.linalg.qr(np.stack([np.ones(edge * edge), x.ravel(), y.ravel()], axis=1))
    plane = plane.astype(np.float32)
    looks = np.empty(thumbnails.shape, np.float16)
    deviation = np.empty(len(thumbnails), np.float32)
    for at in range(0, len(thumbnails), _BLOCK):
        block = slice(at, at + _BLOCK)
        values = thumbnails[block].astype(np.float32)
        values -= (values @ plane) @ plane.T
        deviation[block] = values.std(axis=1)
        looks[block] = values / np.maximum(deviation[block, None], _LEAST_DETAIL)
    return looks, deviation >= _LEAST_DETAIL


def _alike(looks: NDArray[np.float16], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell, as (P,), which pairs of normalised thumbnails look alike."""
    alike = np.empty(len(pairs), bool)
    for at in range(0, len(pairs), _BLOCK):
        left, right = (looks[side].astype(np.float32) for side in pairs[at : at + _BLOCK].T)
        alike[at : at + _BLOCK] = np.abs(left - right).mean(axis=1) <= _MOST_DIFFERENT
    return alike
