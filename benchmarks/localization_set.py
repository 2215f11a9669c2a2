"""Make a set of images with objects at known places, from the photos of Tiny-ImageNet.

    python benchmarks/localization_set.py DIR/tiny-imagenet-200 localization
    python benchmarks/localization_set.py DIR/tiny-imagenet-200 ellipses --shape ellipse --soft 2

Photos of the 20 classes of tiny_imagenet_20.txt are pasted at random size and place on backgrounds. These are
photos of the other 180 classes: enlarged, a part of one enlarged more, or tiled with its mirror images. They
are not checked for things that resemble a class. With ``--shape square`` the object of an image is the whole
photo: its mask is its box, and what is around the thing in the photo counts as the object. ``ellipse`` cuts
out the middle of the photo, so masks differ from boxes; ``--soft`` blends its edge over some pixels, and the
mask ends where the object covers half.

Some images (``--two``) hold a second, smaller object of another class, apart from the first, where there is
room. The label of an image is the class of its larger object.

Three splits share no photo, neither for objects nor for backgrounds: train and val take theirs from
Tiny-ImageNet's train split, test from its val split. The folder holds SPLIT/CLASS/NUMBER.jpg, which
``conformer-vision train --data`` takes, and SPLIT.json in COCO's form with the boxes and masks of all
objects, file names relative to the folder of the split. The same arguments and seed give the same files.
"""

from __future__ import annotations

import argparse
import glob
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from conformer_vision.explain.coco import RunLengths
from conformer_vision.files import atomic_path

CLASSES = Path(__file__).resolve().parent / "tiny_imagenet_20.txt"
SPLITS = ("train", "val", "test")
_TRIES = 50
"""Places that are tried for a second object."""


@dataclass(frozen=True)
class Recipe:
    """What the images are like.

    Args:
        size: Pixels of an edge.
        smallest: Smallest edge of an object, as a share of the image's.
        largest: Largest one.
        two: Share of the images with two objects.
        shape: ``square`` or ``ellipse``.
        soft: Pixels over which the edge of an object is blended.
        seed: Of all draws.
    """

    size: int = 128
    smallest: float = 0.25
    largest: float = 0.6
    two: float = 0.3
    shape: str = "square"
    soft: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Photos:
    """Photos of one split of Tiny-ImageNet."""

    data: datasets.Dataset
    """Rows with the file of an image and a label."""

    @classmethod
    def read(cls, pattern: str) -> Photos:
        """Read parquet files in the layout of `take_images`; a glob."""
        files = sorted(glob.glob(pattern))
        if not files:
            raise ValueError(f"no file is called {pattern}")
        data = datasets.Dataset.from_parquet(files, keep_in_memory=True)
        return cls(data.cast_column("image", datasets.Image(decode=False)))

    @property
    def names(self) -> list[str]:
        """Names of the classes."""
        names: list[str] = self.data.features["label"].names
        return names

    def image(self, row: int) -> Image.Image:
        """Read a photo."""
        return Image.open(io.BytesIO(self.data[int(row)]["image"]["bytes"])).convert("RGB")


@dataclass(frozen=True)
class Share:
    """The photos of a split of the set, by their rows."""

    objects: list[NDArray[np.int64]]
    """Per class."""
    backgrounds: NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """An object in an image."""

    label: int
    mask: NDArray[np.bool_]
    """(H, W)."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height in pixels."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def share_out(photos: Photos, classes: Sequence[str], parts: dict[str, float], seed: int) -> dict[str, Share]:
    """Share photos out to splits, so that none is in two; each class is cut at the same shares."""
    labels = np.array(photos.data["label"])
    numbers = [photos.names.index(name) for name in classes]
    draw = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == number) for number in numbers]
    groups.append(np.flatnonzero(~np.isin(labels, numbers)))
    ends = np.cumsum(list(parts.values()))
    cut: dict[str, list[NDArray[np.int64]]] = {split: [] for split in parts}
    for group in groups:
        places = [round(end * len(group)) for end in ends[:-1]]
        for split, part in zip(parts, np.split(draw.permutation(group), places), strict=True):
            cut[split].append(part)
    return {split: Share(found[:-1], found[-1]) for split, found in cut.items()}


def background(photo: Image.Image, size: int, draw: np.random.Generator) -> Image.Image:
    """Make a background (size x size) of a photo in one of three ways."""
    if draw.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    way = draw.integers(3)
    if way == 0:
        return photo.resize((size, size), Image.Resampling.BICUBIC)
    if way == 1:
        edge = draw.uniform(0.4, 0.8) * min(photo.size)
        left, top = (draw.uniform(0, full - edge) for full in photo.size)
        part = (left, top, left + edge, top + edge)
        return photo.resize((size, size), Image.Resampling.BICUBIC, box=part)
    pixels = np.asarray(photo)
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    pixels = np.concatenate([pixels, pixels[::-1]], axis=0)  # it now repeats without seams
    repeats = -(-2 * size // min(pixels.shape[:2]))
    pixels = np.tile(pixels, (repeats, repeats, 1))
    top, left = draw.integers(0, size, 2)
    return Image.fromarray(np.ascontiguousarray(pixels[top : top + size, left : left + size]))


def opacity(recipe: Recipe, box: tuple[int, int, int], draw: np.random.Generator) -> NDArray[np.float32]:
    """Return how much an object covers of each pixel, (size, size) in [0, 1].

    Args:
        recipe: Shape and softness of the object.
        box: x, y and the edge of the photo.
        draw: Gives an ellipse its proportions.
    """
    x, y, edge = box
    rows, columns = np.mgrid[: recipe.size, : recipe.size] + 0.5
    inside = np.minimum.reduce([columns - x, x + edge - columns, rows - y, y + edge - rows])
    if recipe.shape == "ellipse":
        radii = edge / 2 * draw.uniform(0.6, 1.0, 2)
        away = np.hypot((columns - x - edge / 2) / radii[0], (rows - y - edge / 2) / radii[1])
        inside = np.minimum((1 - away) * radii.min(), inside)
    covered = inside / recipe.soft + 0.5 if recipe.soft else inside > 0
    covered = np.where((columns > x) & (columns < x + edge) & (rows > y) & (rows < y + edge), covered, 0)
    return covered.clip(0, 1).astype(np.float32)


def compose(
    photos: Photos, share: Share, first: tuple[int, int], recipe: Recipe, draw: np.random.Generator
) -> tuple[Image.Image, list[Placed]]:
    """Make an image; its first object is the larger one.

    Args:
        photos: Where the photos are.
        share: Those of the split.
        first: Class and row of the first object.
        recipe: What the image is like.
        draw: Random numbers of this image.
    """
    ground = background(photos.image(draw.choice(share.backgrounds)), recipe.size, draw)
    pixels = np.asarray(ground, dtype=np.float32)
    edge = round(draw.uniform(recipe.smallest, recipe.largest) * recipe.size)
    chosen = [(*first, (*_corner(recipe, edge, draw), edge))]
    if draw.random() < recipe.two:
        label = int((first[0] + draw.integers(1, len(share.objects))) % len(share.objects))
        row = int(draw.choice(share.objects[label]))
        for _ in range(_TRIES):
            smaller = round(draw.uniform(recipe.smallest * recipe.size, edge))
            box = (*_corner(recipe, smaller, draw), smaller)
            if _apart(chosen[0][2], box):
                chosen.append((label, row, box))
                break
    placed = []
    for label, row, (x, y, wide) in chosen:
        photo = photos.image(row).resize((wide, wide), Image.Resampling.BICUBIC)
        layer = Image.new("RGB", ground.size)
        layer.paste(photo, (x, y))
        covered = opacity(recipe, (x, y, wide), draw)
        pixels = pixels + covered[..., None] * (np.asarray(layer, dtype=np.float32) - pixels)
        placed.append(Placed(label, covered >= 0.5))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)), placed


def _corner(recipe: Recipe, edge: int, draw: np.random.Generator) -> tuple[int, int]:
    x, y = draw.integers(0, recipe.size - edge + 1, 2).tolist()
    return x, y


def _apart(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Tell whether two squares neither overlap nor touch."""
    return any(one[axis] + one[2] < other[axis] or other[axis] + other[2] < one[axis] for axis in (0, 1))


def write_split(
    split: str,
    photos: Photos,
    share: Share,
    classes: Sequence[str],
    folder: Path,
    recipe: Recipe,
    *,
    per_photo: int,
) -> int:
    """Write the images of a split and its COCO file; return their number.

    Every photo of an object is the main object of `per_photo` images.
    """
    content: dict[str, Any] = {
        "info": {"description": "Photos of Tiny-ImageNet on others of it", **asdict(recipe)},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
    }
    mains = [(label, int(row)) for label, rows in enumerate(share.objects) for row in rows] * per_photo
    for number, main in enumerate(mains):
        draw = np.random.default_rng([recipe.seed, SPLITS.index(split), number])
        image, placed = compose(photos, share, main, recipe, draw)
        name = f"{classes[main[0]]}/{number:06}.jpg"
        path = folder / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95, subsampling=0)
        known = {"id": number, "file_name": name, "width": image.width, "height": image.height}
        content["images"].append(known)
        for each in placed:
            content["annotations"].append(_annotation(each, len(content["annotations"]), number))
    with atomic_path(folder / f"{split}.json") as temporary:  # last, so that it speaks of what is there
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return len(mains)


def _annotation(placed: Placed, number: int, image: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": placed.label,
        "bbox": list(placed.box),
        "area": int(placed.mask.sum()),
        "segmentation": RunLengths.of(placed.mask).to_coco(),
        "iscrowd": 0,
    }


def make_set(
    source: Path, folder: Path, recipe: Recipe, *, val_share: float = 0.05, per_photo: int = 1
) -> dict[str, int]:
    """Write the three splits; return their numbers of images.

    Args:
        source: Folder of Tiny-ImageNet's parquet files.
        folder: Where to write; a new or an empty folder.
        recipe: What the images are like.
        val_share: Share of the training photos that val takes.
        per_photo: Images of train with the same main object; val and test have one.

    Raises:
        ValueError: The folder holds something, which would mix with the set, or there are no such files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    classes = CLASSES.read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, parts in (("train", {"train": 1 - val_share, "val": val_share}), ("val", {"test": 1.0})):
        photos = Photos.read(str(source / f"{name}*.parquet"))
        for split, share in share_out(photos, classes, parts, recipe.seed).items():
            repeats = per_photo if split == "train" else 1
            written[split] = write_split(split, photos, share, classes, folder, recipe, per_photo=repeats)
    return written


def main() -> None:
    """Run the command line."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Make a set of images with objects at known places")
    parser.add_argument("source", type=Path, help="folder of Tiny-ImageNet's parquet files")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--size", type=int, default=default.size, help="pixels of an edge")
    parser.add_argument("--two", type=float, default=default.two, help="share with two objects")
    parser.add_argument("--shape", choices=["square", "ellipse"], default=default.shape)
    parser.add_argument("--soft", type=float, default=default.soft, help="pixels of an object's soft edge")
    parser.add_argument("--per_photo", type=int, default=1, help="training images with the same main object")
    parser.add_argument("--seed", type=int, default=default.seed)
    options = parser.parse_args()
    names = ("size", "two", "shape", "soft", "seed")
    recipe = Recipe(**{name: getattr(options, name) for name in names})
    for split, images in make_set(
        options.source, options.folder, recipe, per_photo=options.per_photo
    ).items():
        print(f"{options.folder / split}: {images:,} images")


if __name__ == "__main__":
    main()
