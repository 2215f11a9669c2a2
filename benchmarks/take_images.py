"""Write some classes of a set of labelled images, or a share of all, as a parquet file.

    python benchmarks/take_images.py cifar10/train.parquet one-percent.parquet --share 0.01
    python benchmarks/take_images.py 'tiny-imagenet-200/train-*.parquet' train.parquet --classes classes.txt

A share is the same of every class, drawn with a seed (docs/results.md uses 0); rows keep their order. The
classes are the lines of a text file, named as in the files' metadata (Hugging Face `datasets`).
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

import datasets
from sklearn.model_selection import train_test_split


def take_images(
    source: str, target: Path, *, share: float | None = None, classes: list[str] | None = None, seed: int = 0
) -> int:
    """Write the part and give its number of rows.

    Args:
        source: parquet files with a column ``label``; a glob.
        target: file to write.
        share: of every class, in (0, 1); None for all.
        classes: names to keep, in the order that their labels get; None for all.
        seed: of the draw.

    Raises:
        ValueError: no such file, or a class that the files do not have.
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
    data.to_parquet(target)
    return len(data)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Take a part of a set of labelled images")
    parser.add_argument("source", help="parquet files; a glob in quotes for several")
    parser.add_argument("target", type=Path)
    parser.add_argument("--share", type=float, help="of every class, in (0, 1)")
    parser.add_argument("--classes", type=Path, help="text file with the classes to keep, one per line")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    classes = options.classes and options.classes.read_text(encoding="utf-8").splitlines()
    rows = take_images(
        options.source, options.target, share=options.share, classes=classes, seed=options.seed
    )
    print(f"{options.target}: {rows:,} images")


if __name__ == "__main__":
    main()
