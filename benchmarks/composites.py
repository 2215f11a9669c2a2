"""Make a set of images with several labels each: composites of two to four photos of Tiny-ImageNet.

    python benchmarks/composites.py DIR/tiny-imagenet-200 composites
    python benchmarks/composites.py DIR/tiny-imagenet-200 scattered --placement random --train 2000

An image has four quarters. Two to four of them show a photo each, all of different classes of the 20 of
tiny_imagenet_20.txt, which are the labels of the image; how many, which classes and which quarters is drawn
with equal probability. With ``--placement grid`` a photo fills its quarter; with ``random`` its edge is 60 to
100 % of the quarter's, at any place in it. What is left shows the background: a photo of the other 180
classes over the whole image. It is not checked for things that resemble a class.

The splits share no photo: train and val take theirs from Tiny-ImageNet's train split, test from its val
split. The folder holds ``set.csv`` with the images of train and val, which ``conformer-vision train --data``
takes, and ``test.csv`` for ``conformer-vision evaluate --data``. Both have the columns path, labels (a JSON
list) and split. The images are SPLIT/NUMBER.jpg. The same arguments and seed give the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from conformer_vision.data.csv_file import write_csv
from localization_set import CLASSES, SPLITS, Photos, Share, background, share_out

FEWEST, MOST = 2, 4
"""Photos in an image."""


@dataclass(frozen=True)
class Recipe:
    """What the images are like.

    Args:
        size: Pixels of an edge; an even number.
        placement: ``grid`` or ``random``.
        seed: Of all draws.
    """

    size: int = 128
    placement: str = "grid"
    seed: int = 0


def compose(
    photos: Photos, share: Share, recipe: Recipe, draw: np.random.Generator
) -> tuple[Image.Image, list[int]]:
    """Make an image, and return it with its labels: numbers of classes, ascending.

    Args:
        photos: Where the photos are.
        share: Those of the split.
        recipe: What the image is like.
        draw: Random numbers of this image.
    """
    image = background(photos.image(draw.choice(share.backgrounds)), recipe.size, draw)
    count = draw.integers(FEWEST, MOST + 1)
    labels = draw.choice(len(share.objects), count, replace=False).tolist()
    quarter = recipe.size // 2
    for label, place in zip(labels, draw.permutation(4).tolist(), strict=False):
        edge, x, y = quarter, 0, 0
        if recipe.placement == "random":
            edge = round(draw.uniform(0.6, 1.0) * quarter)
            x, y = draw.integers(0, quarter - edge + 1, 2).tolist()
        photo = photos.image(draw.choice(share.objects[label]))
        photo = photo.resize((edge, edge), Image.Resampling.BICUBIC)
        image.paste(photo, (place % 2 * quarter + x, place // 2 * quarter + y))
    return image, sorted(labels)


def write_split(
    split: str, photos: Photos, share: Share, classes: Sequence[str], folder: Path, recipe: Recipe, count: int
) -> list[tuple[str, str, str]]:
    """Write the images of a split; return the rows of the table."""
    (folder / split).mkdir(parents=True)
    rows = []
    for number in range(count):
        draw = np.random.default_rng([recipe.seed, SPLITS.index(split), number])
        image, labels = compose(photos, share, recipe, draw)
        name = f"{split}/{number:06}.jpg"
        image.save(folder / name, quality=95, subsampling=0)
        rows.append((name, json.dumps([classes[label] for label in labels]), split))
    return rows


def make_set(
    source: Path, folder: Path, recipe: Recipe, counts: dict[str, int], *, val_share: float = 0.1
) -> None:
    """Write the three splits and both tables.

    Args:
        source: Folder of Tiny-ImageNet's parquet files.
        folder: Where to write; a new or an empty folder.
        recipe: What the images are like.
        counts: Number of images by split.
        val_share: Share of the training photos that val takes.

    Raises:
        ValueError: The folder holds something, which would mix with the set, or there are no such files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    classes = CLASSES.read_text(encoding="utf-8").splitlines()
    rows = {}
    for name, parts in (("train", {"train": 1 - val_share, "val": val_share}), ("val", {"test": 1.0})):
        photos = Photos.read(str(source / f"{name}*.parquet"))
        for split, share in share_out(photos, classes, parts, recipe.seed).items():
            rows[split] = write_split(split, photos, share, classes, folder, recipe, counts[split])
    header = ("path", "labels", "split")
    write_csv(folder / "set.csv", header, rows["train"] + rows["val"])  # last, as it speaks of what is there
    write_csv(folder / "test.csv", header, rows["test"])


def main() -> None:
    """Run the command line."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Make a set of composites of two to four photos")
    parser.add_argument("source", type=Path, help="folder of Tiny-ImageNet's parquet files")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--size", type=int, default=default.size, help="pixels of an edge, an even number")
    parser.add_argument("--placement", choices=["grid", "random"], default=default.placement)
    parser.add_argument("--seed", type=int, default=default.seed)
    for split, count in zip(SPLITS, (6000, 600, 1000), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images of {split}")
    options = parser.parse_args()
    recipe = Recipe(options.size, options.placement, options.seed)
    counts = {split: getattr(options, split) for split in SPLITS}
    make_set(options.source, options.folder, recipe, counts)
    print(
        f"{options.folder}: " + ", ".join(f"{count:,} images of {split}" for split, count in counts.items())
    )


if __name__ == "__main__":
    main()
