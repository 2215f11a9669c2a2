"""Write some images of a source to a folder, as files to try `conformer-vision predict` on.

For instance: python examples/write_images.py digits images --count 12
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np

from conformer_vision.data import ImageSource, Splitting, open_images, require_source


def write_images(source: ImageSource, folder: Path, *, count: int, seed: int = 0) -> list[Path]:
    """Write images drawn at random as PNG files ``CLASS_NUMBER.png``, in the order of their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed).permutation(len(source))[:count]
    paths = []
    for index in sorted(drawn.tolist()):
        image, label = source[index]
        name = re.sub(r"[^\w.-]+", "_", source.classes[label])
        paths.append(folder / f"{name}_{index:05d}.png")
        image.save(paths[-1])
    return paths


def main() -> None:
    """Draw from the held-out images, which training has not seen."""
    parser = argparse.ArgumentParser(description="Write held-out images of a source to a folder.")
    parser.add_argument("source", help="folder of class folders, parquet, or digits")
    parser.add_argument("folder", type=Path, help="where to write them")
    parser.add_argument("--count", type=int, default=12, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the draw")
    args = parser.parse_args()
    images = open_images(args.source, "val", Splitting(seed=args.seed))
    source = require_source(images, name=args.source)
    paths = write_images(source, args.folder, count=args.count, seed=args.seed)
    print(f"{len(paths)} held-out images in {args.folder}")


if __name__ == "__main__":
    main()
