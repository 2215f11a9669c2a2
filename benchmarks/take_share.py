"""Write a share of a parquet file of labelled pictures, the same of every class, as another such file.

    python benchmarks/take_share.py cifar10/train.parquet 0.01 one-percent.parquet

The rows are drawn with a seed and keep their order; docs/results.md uses seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split


def take_share(source: Path, share: float, target: Path, *, seed: int = 0) -> int:
    """Write the share and give its number of rows.

    Args:
        source: parquet file with a column ``label``.
        share: of every class, in (0, 1).
        target: file to write.
        seed: of the draw.
    """
    table = pq.read_table(source)
    labels = table.column("label").to_pylist()
    rows, _ = train_test_split(range(len(labels)), train_size=share, stratify=labels, random_state=seed)
    pq.write_table(table.take(sorted(rows)), target)
    return len(rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Take a share of a set of labelled pictures")
    parser.add_argument("source", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("target", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = take_share(options.source, options.share, options.target, seed=options.seed)
    print(f"{options.target}: {rows:,} pictures")


if __name__ == "__main__":
    main()
