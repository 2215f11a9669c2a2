"""Write some classes of a set of labelled images, or a part of all, as a parquet file.

    python benchmarks/take_images.py cifar10/train.parquet one-percent.parquet --share 0.01
    python benchmarks/take_images.py 'tiny-imagenet-200/train-*.parquet' train.parquet --classes classes.txt
    python benchmarks/take_images.py cifar10/train.parquet twenty.parquet --per_class 20

A share is the same of every class. A number per class takes the first ones of an order drawn for every
class, so a smaller set is part of a larger one, and `--skip` takes others. Both are drawn with a seed
(docs/results.md uses 0); rows keep their order. The classes are the lines of a text file, named as in the
files' metadata (Hugging Face `datasets`).
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

import datasets
import numpy as np
from sklearn.model_selection import train_test_split


def take_images(
    source: str,
    target: Path,
    *,
    share: float | None = None,
    per_class: int | None = None,
    skip: int = 0,
    classes: list[str] | None = None,
    seed: int = 0,
) -> int:
    """Write the part and give its number of rows.

    Args:
        source: parquet files with a column ``label``; a glob.
        target: file to write.
        share: of every class, in (0, 1); None for all.
        per_class: images of every class; None for all.
        skip: images of every class to pass over before those.
        classes: names to keep, in the order that their labels get; None for all.
        seed: of the draw.

    Raises:
        ValueError: no such file, a class that the files do not have, or one of too few images.
    """
    files = sorted(glob.glob(source))
    if not files:
        raise ValueError(f"no file is called {source}")
    data = datasets.Dataset.from_parquet(files, keep_in_memory=True)
    names = data.features["label"].names
    if classes is not None:
        if unknown := [name for name in classes if name not in names]:
            raise ValueError(f"{source} has no class {unknown[0]!r}")
        kept = {names.index(name): place for place, name in enumerate(classes)}
        data = data.select([row for row, label in enumerate(data["label"]) if label in kept])
        labels = [kept[label] for label in data["label"]]
        data = data.remove_columns("label").add_column("label", labels)
        data = data.cast_column("label", datasets.ClassLabel(names=classes))
    if share is not None:
        rows, _ = train_test_split(
            range(len(data)), train_size=share, stratify=data["label"], random_state=seed
        )
        data = data.select(sorted(rows))
    if per_class is not None:
        labels, rng, rows = np.array(data["label"]), np.random.default_rng(seed), []
        for place, name in enumerate(data.features["label"].names):
            of_class = rng.permutation(np.flatnonzero(labels == place))
            if len(of_class) < skip + per_class:
                raise ValueError(f"{source} has {len(of_class)} images of the class {name!r}")
            rows += of_class[skip : skip + per_class].tolist()
        data = data.select(sorted(rows))
    data.to_parquet(target)
    return len(data)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Take a part of a set of labelled images")
    parser.add_argument("source", help="parquet files; a glob in quotes for several")
    parser.add_argument("target", type=Path)
    parser.add_argument("--share", type=float, help="of every class, in (0, 1)")
    parser.add_argument("--per_class", type=int, help="images of every class")
    parser.add_argument("--skip", type=int, default=0, help="with --per_class: images to pass over first")
    parser.add_argument("--classes", type=Path, help="text file with the classes to keep, one per line")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    classes = options.classes and options.classes.read_text(encoding="utf-8").splitlines()
    rows = take_images(
        options.source,
        options.target,
        share=options.share,
        per_class=options.per_class,
        skip=options.skip,
        classes=classes,
        seed=options.seed,
    )
    print(f"{options.target}: {rows:,} images")


if __name__ == "__main__":
    main()
