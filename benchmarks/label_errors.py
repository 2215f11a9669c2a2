"""Precision and recall of the list of label errors, on images with labels that were flipped on purpose.

    python benchmarks/label_errors.py cifar10/train.parquet --images 5000 --output runs/label-errors -- \
        --input_size 64 --epochs 8 --batch_size 64

Takes as many images of every class, gives a share of them another class drawn at random, trains five folds on
them and lets `find_label_errors` list the labels that it takes for wrong. Behind ``--`` stand options of
``conformer-vision train``. The same command goes on where it was stopped. Labels that were wrong before count
as right here, so the precision is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np

from conformer_vision.inference.label_errors import find_label_errors
from stored import RESULTS, provenance

SPEC = ("--folds", "5", "--fold", "all", "--auto_resume", "true", "--report", "false", "--progress", "plain")


@dataclass(frozen=True)
class Found:
    """What came out."""

    images: int
    flipped: int
    listed: int
    right: int
    """Flipped labels on the list."""
    precision: float
    recall: float
    precision_of_first: dict[int, float]
    """Of the surest of the list, by their number."""
    top1: float
    """Out of fold, against the labels with the flipped ones among them."""


def write_flipped(source: Path, target: Path, *, images: int, share: float, seed: int) -> set[int]:
    """Write images of which some have another label; return the rows of those.

    Args:
        source: parquet file with the columns ``image`` and ``label``.
        target: file to write.
        images: number of images, as many of every class.
        share: of the images, in (0, 1).
        seed: of the draws.
    """
    data = datasets.Dataset.from_parquet(str(source))
    names = data.features["label"].names
    labels = np.array(data["label"])
    rng = np.random.default_rng(seed)
    each = images // len(names)
    rows = [rng.permutation(np.flatnonzero(labels == label))[:each] for label in range(len(names))]
    kept = np.sort(np.concatenate(rows))
    wrong = rng.permutation(len(kept))[: round(share * len(kept))]
    given = labels[kept]
    given[wrong] = (given[wrong] + rng.integers(1, len(names), len(wrong))) % len(names)
    taken = data.select(kept.tolist()).select_columns(["image"]).add_column("label", given.tolist())
    if not target.is_file():
        taken.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(str(target))
    return set(wrong.tolist())


def judge(run: Path, flipped: set[int]) -> Found:
    """Compare the list of a run with the rows that were flipped."""
    found = find_label_errors(run)
    rows = [int(each.image.rpartition(" row ")[2]) for each in found.errors]
    hits = [row in flipped for row in rows]
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return Found(
        images=found.images,
        flipped=len(flipped),
        listed=len(rows),
        right=sum(hits),
        precision=sum(hits) / max(len(hits), 1),
        recall=sum(hits) / max(len(flipped), 1),
        precision_of_first={
            number: sum(hits[:number]) / number for number in (50, 100, len(flipped)) if number <= len(hits)
        },
        top1=results["out_of_fold"]["fused"]["top1"]["value"],
    )


def main() -> None:
    """Train, and print what came out."""
    parser = argparse.ArgumentParser(description="Precision and recall of the list of label errors")
    parser.add_argument("source", type=Path, help="parquet file with the columns image and label")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--share", type=float, default=0.05, help="of labels to flip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder for the images and the run")
    own = sys.argv[1:]
    end = own.index("--") if "--" in own else len(own)
    options, training = parser.parse_args(own[:end]), own[end + 1 :]
    options.output.mkdir(parents=True, exist_ok=True)
    target, run = options.output / "flipped.parquet", options.output / "run"
    flipped = write_flipped(
        options.source, target, images=options.images, share=options.share, seed=options.seed
    )
    command = [sys.executable, "-m", "conformer_vision", "train", "--data", str(target), "--output", str(run)]
    subprocess.run([*command, *SPEC, *training], check=True)
    found = judge(run, flipped)
    store(found, options, training)
    print(
        f"{found.flipped:,} of {found.images:,} labels flipped; top-1 out of fold {found.top1:.1%}\n"
        f"{found.listed:,} listed, {found.right:,} of them flipped: "
        f"precision {found.precision:.1%}, recall {found.recall:.1%}"
    )
    for number, share in found.precision_of_first.items():
        print(f"precision of the surest {number:,}: {share:.1%}")


def store(found: Found, options: argparse.Namespace, training: list[str]) -> None:
    """Write what came out to results/."""
    name, seed = options.source.parent.name, options.seed
    content = {"table": "label-errors", "name": name, "seed": seed, "training": training}
    text = json.dumps({**content, **asdict(found), **provenance()}, indent=1)
    (RESULTS / f"label-errors--{name}--{seed}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
