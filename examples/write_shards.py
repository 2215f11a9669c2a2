"""Write the images of a source as shards, to stream them in training.

For instance: python examples/write_shards.py photos shards --images_per_shard 1000
Then: conformer-vision train --data wds/shards
"""

from __future__ import annotations

import argparse
from pathlib import Path

from conformer_vision.data import Splitting, open_images, require_source, write_shards


def main() -> None:
    """Write one split, or all images, in an order drawn by seed."""
    parser = argparse.ArgumentParser(description="Write the images of a source as shards.")
    parser.add_argument("source", help="folder of class folders, parquet, or digits")
    parser.add_argument("folder", type=Path, help="where to write them; new or empty")
    parser.add_argument("--images_per_shard", type=int, default=1000, help="more for small images")
    parser.add_argument("--split", choices=["train", "val", "all"], default="all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the order")
    args = parser.parse_args()
    images = open_images(args.source, args.split, Splitting(seed=args.seed))
    source = require_source(images, name=args.source)
    files = write_shards(
        source,
        args.folder,
        images_per_shard=args.images_per_shard,
        seed=args.seed,
    )
    print(f"{len(source)} images in {len(files)} shards in {args.folder}")


if __name__ == "__main__":
    main()
