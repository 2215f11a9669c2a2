"""Parameters and multiply-accumulates (MACs) of every Conformer, in the plain formulation and in ours.

Counted are convolutions, linear layers and both products of attention (QK^T, and the product with V). Not
counted are biases, norms, activations, softmax, pooling, upsampling and additions. Zeros that a convolution
pads count as any other input. Under this convention the plain formulation has 5.226 / 10.599 / 7.046 / 23.326
GMACs at 224 x 224 for Ti, S, S/32 and B (the paper reports 5.2, 10.6 and 23.3 for Ti, S and B).

    python benchmarks/macs.py [--write]

With --write the models are timed too, in turns (folded, in batches of 8, on one thread), and the table that
`conformer-vision models` prints is written, with the speed of each over that of Conformer-Ti.
"""

from __future__ import annotations

import argparse
import csv
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import Tensor, nn

import conformer_vision
from conformer_vision import VARIANTS
from conformer_vision.benchmark.timing import take_turns
from conformer_vision.commands.models import read_table
from oracle import ReferenceConformer, count_macs, plain_config

TABLE = Path(conformer_vision.__file__).parent / "models" / "variants.csv"


def describe(name: str) -> dict[str, Any]:
    """Return a row of the table, without the speed."""
    cfg = timm.get_pretrained_cfg(name)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
        plain = ReferenceConformer(plain_config(model))
    return {
        "name": name,
        "weights": "bundled" if cfg.file else "download" if cfg.url else "none",
        "input_size": cfg.input_size[-1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gmacs": round(count_macs(plain, cfg.input_size) / 1e9, 3),
        "gmacs_here": round(count_macs(model, cfg.input_size) / 1e9, 3),
    }


@torch.inference_mode()
def call(model: nn.Module, images: Tensor) -> None:
    """Compute the logits."""
    model(images)


def time_all(names: list[str], *, rounds: int = 7) -> list[float]:
    """Return the speed of every model over that of the first."""
    torch.set_num_threads(1)
    calls = []
    for name in names:
        model = timm.create_model(name, num_classes=1000).fold().to(memory_format=torch.channels_last)
        calls.append(partial(call, model, torch.randn(8, *timm.get_pretrained_cfg(name).input_size)))
    times = take_turns(calls, rounds=rounds, seconds=1e9)
    return [median(one / other for one, other in zip(times[0], each, strict=True)) for each in times]


def main() -> None:
    """Print the table, and write that of `models` if asked to."""
    parser = argparse.ArgumentParser(description="Parameters and GMACs of every Conformer")
    parser.add_argument("--write", action="store_true", help=f"Time them, and write {TABLE.name}.")
    arguments = parser.parse_args()
    rows = [describe(name) for name in VARIANTS]
    print(f"{'model':32} {'size':>5} {'parameters':>11} {'plain GMACs':>12} {'GMACs here':>11} {'ratio':>6}")
    for row in rows:
        ratio = row["gmacs_here"] / row["gmacs"]
        print(
            f"{row['name']:32} {row['input_size']:5} {row['parameters']:11,} {row['gmacs']:12.3f}"
            f" {row['gmacs_here']:11.3f} {ratio:6.3f}"
        )
    stored = read_table()
    if not arguments.write and [row | {"speed": None} for row in stored] != [
        {name: row.get(name) for name in stored[0]} for row in rows
    ]:
        raise SystemExit(f"{TABLE.name} is out of date: python benchmarks/macs.py --write")
    if arguments.write:
        for row, speed in zip(rows, time_all(list(VARIANTS)), strict=True):
            row["speed"] = f"{speed:.2g}"
        with TABLE.open("w", newline="", encoding="utf-8") as file:
            names = [name for name in rows[0] if name != "gmacs_here"]
            writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
