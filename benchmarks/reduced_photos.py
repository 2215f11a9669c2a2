"""What decoding large JPEGs at a reduced size changes in a model's answers.

Every image is shown to the model twice: as `predict` and `evaluate` read it, at a reduced size where that is
enough, and decoded in full. Two kinds of images are compared: labelled ones, enlarged and saved as JPEG, for
the accuracy; and parts of scikit-learn's photos at their own resolution, whose detail is lost.

    python benchmarks/reduced_photos.py --data tiny20-val.parquet     # from benchmarks/take_images.py
    python benchmarks/reduced_photos.py conformer_small_patch16_224 --data photos --edge 2000
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from functools import partial
from io import BytesIO
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from conformer_vision.data import open_image, open_images, require_source
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.models.variants import SHIPPED
from conformer_vision.preprocessing import read_through
from conformer_vision.runtime.base import FUSED
from conformer_vision.runtime.decisions import head_probabilities

BATCH = 32


class Labelled(NamedTuple):
    """A JPEG file and its class; -1 where it has none."""

    data: bytes
    label: int


def encoded(image: Image.Image) -> bytes:
    """The image as a JPEG of quality 90."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def enlarged(data: str, trained: TrainedModel, *, count: int, edge: int) -> Iterator[Labelled]:
    """Images of a set, drawn with seed 0, whose short edge gets ``edge`` pixels."""
    source = require_source(open_images(data, "all", classes=trained.spec.classes), name=data)
    for row in np.random.default_rng(0).permutation(len(source))[:count].tolist():
        image, label = source[row]
        scale = edge / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        assert isinstance(label, int), "images of one label each"
        yield Labelled(encoded(image.resize(size, Image.Resampling.BICUBIC)), label)


def parts_of_photos(*, count: int) -> Iterator[Labelled]:
    """Square parts of 300 to 427 pixels, without labels."""
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(array) for array in load_sample_images().images]
    for number in range(count):
        photo = photos[number % 2]
        edge = int(rng.integers(300, 428))
        left, top = (int(rng.integers(whole - edge + 1)) for whole in photo.size)
        yield Labelled(encoded(photo.crop((left, top, left + edge, top + edge))), -1)


class Both(NamedTuple):
    """Probabilities (N, K) of the fused heads by both ways of reading, and the labels (N,)."""

    reduced: Tensor
    full: Tensor
    labels: Tensor
    by: tuple[int, ...]
    """What the edges were divided by."""


def answers(trained: TrainedModel, images: Iterable[Labelled]) -> Both:
    """Let the model answer both ways."""
    transform = trained.transform
    reduced, full, labels, by = [], [], [], []
    waiting = iter(images)
    while batch := list(islice(waiting, BATCH)):
        ways = [
            np.stack(
                [read_through(transform, partial(open_image, image.data, name="image")) for image in batch]
            ),
            np.stack([transform(open_image(image.data)) for image in batch]),
        ]
        for arrays, found in zip(ways, (reduced, full), strict=True):
            logits = trained.outputs(arrays).logits
            shares = head_probabilities(logits, trained.spec)[FUSED].astype(float)
            found.append(torch.from_numpy(shares))
        labels += [image.label for image in batch]
        by += [transform.plan(Image.open(BytesIO(image.data)).size).kept.reduction for image in batch]
    return Both(torch.cat(reduced), torch.cat(full), torch.tensor(labels), tuple(by))


def lines(found: Both) -> Iterator[str]:
    """What has changed, for people."""
    change = (found.reduced - found.full).abs()
    best = found.full.argmax(1)
    same = (found.reduced.argmax(1) == best).double().mean().item()
    own = change.gather(1, best[:, None])
    yield f"  edges divided by {', '.join(map(str, sorted(set(found.by))))}; {len(best)} images"
    yield f"  probability of the answer: changed by {own.mean():.4f} on average, by {own.max():.4f} at most"
    yield f"  any probability: changed by {change.max():.4f} at most"
    yield f"  same answer: {same:.1%}"
    if found.labels.min() >= 0:
        for name, probabilities in (("reduced", found.reduced), ("in full", found.full)):
            right = (probabilities.argmax(1) == found.labels).double().mean().item()
            yield f"  accuracy, {name}: {right:.1%}"


def main() -> None:
    """Print the changes for each kind of images."""
    parser = argparse.ArgumentParser(
        description="Answers to large JPEGs that are decoded at a reduced size and in full"
    )
    parser.add_argument("model", nargs="?", default=SHIPPED, help="as for conformer-vision predict")
    parser.add_argument("--data", help="labelled images of the model's classes, to be enlarged")
    parser.add_argument("--count", type=int, default=1000, help="images of either kind")
    parser.add_argument("--edge", type=int, default=1024, help="short edge of the enlarged images")
    arguments = parser.parse_args()
    trained = TrainedModel(arguments.model, device="cpu")
    if arguments.data:
        print(f"{arguments.data}, enlarged to {arguments.edge} pixels")
        images = enlarged(arguments.data, trained, count=arguments.count, edge=arguments.edge)
        print("\n".join(lines(answers(trained, images))), flush=True)
    print("parts of scikit-learn's photos")
    print("\n".join(lines(answers(trained, parts_of_photos(count=arguments.count)))))


if __name__ == "__main__":
    main()
