"""Write the images of a source as tar shards in WebDataset's layout, to stream them in training.

For instance: python examples/write_shards.py photos shards --images_per_shard 1000
Then: conformer-vision train --data wds/shards
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from conformer_vision.data import ImageSource, Splitting, open_images, require_source


def write_shards(source: ImageSource, folder: Path, *, images_per_shard: int, seed: int = 0) -> list[Path]:
    """Write all images of a source, in an order drawn by seed, so that every shard holds all classes.

    Image files go in as they are if all have the same suffix; else images are written as PNG.
    ``classes.txt`` and ``_info.json``, which holds the length of every shard, are written last.
    """
    folder.mkdir(parents=True)
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    suffix = _common_suffix(source)
    lengths = {}
    for number, first in enumerate(range(0, len(order), images_per_shard)):
        name = f"shard-{number:06d}.tar"
        with tarfile.open(folder / name, "w") as tar:
            drawn = order[first : first + images_per_shard]
            for place, index in enumerate(drawn, start=first):
                for kind, data in _sample(source, index, suffix):
                    member = tarfile.TarInfo(f"{place:09d}{kind}")  # no times: same images, same file
                    member.size = len(data)
                    tar.addfile(member, BytesIO(data))
        lengths[name] = len(drawn)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in source.classes), encoding="utf-8")
    # The layout of timm, which reads such shards too; only `mirrorable` is ours.
    split = {"name": "train", "num_samples": len(source)}
    split |= {"filenames": list(lengths), "shard_lengths": list(lengths.values())}
    info = {"mirrorable": source.mirrorable, "splits": {"train": split}}
    (folder / "_info.json").write_text(json.dumps(info, indent=1), encoding="utf-8")
    return [folder / name for name in lengths]


def _common_suffix(source: ImageSource) -> str | None:
    """Return the suffix of the source's files; None if they differ or the source keeps no files."""
    files = [source.file(index) for index in range(len(source))]
    suffixes = {file.suffix.lower() if isinstance(file, Path) else None for file in files}
    return suffixes.pop() if len(suffixes) == 1 else None


def _sample(source: ImageSource, index: int, suffix: str | None) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an image with their suffixes; a broken image raises."""
    yield ".cls", json.dumps(source.labels[index]).encode()  # a number, or a list of several
    image, file = source.image(index), source.file(index)
    if suffix is not None and isinstance(file, Path):
        yield suffix, file.read_bytes()
        return
    buffer = BytesIO()
    image.save(buffer, "PNG")
    yield ".png", buffer.getvalue()


def main() -> None:
    """Write one split, or all images."""
    parser = argparse.ArgumentParser(description="Write the images of a source as shards.")
    parser.add_argument("source", help="folder of class folders, parquet, or digits")
    parser.add_argument("folder", type=Path, help="new folder to write them to")
    parser.add_argument("--images_per_shard", type=int, default=1000, help="more for small images")
    parser.add_argument("--split", choices=["train", "val", "all"], default="all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the order")
    args = parser.parse_args()
    images = open_images(args.source, args.split, Splitting(seed=args.seed))
    source = require_source(images, name=args.source)
    files = write_shards(source, args.folder, images_per_shard=args.images_per_shard, seed=args.seed)
    print(f"{len(source)} images in {len(files)} shards in {args.folder}")


if __name__ == "__main__":
    main()
