"""Kills a training with SIGKILL again and again, and compares its end with a run that was left alone.

    python benchmarks/kill_and_resume.py --kills 20

Trains a small Conformer on scikit-learn's digits twice with the same recipe: once in one go, once by a
process that is killed at random moments and started anew by the same command. Both have to end with the
same weights, bit for bit, and the same metrics but for times. Exits with status 1 where they do not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

RECIPE = """
data: digits
model: conformer_nano_patch8_64
model_kwargs: {depths: [2, 1, 2]}
input_size: 32
epochs: 5
batch_size: 64
accumulate: 2
workers: 1
lr: 2.0e-3
mixup: 0.2
cutmix: 0.5
drop_path_rate: 0.1
ema_decay: 0.99
aug_repeats: 2
save_top_k: 3
save_minutes: 0.02
device: cpu
precision: "32"
report: false
augment: {auto_augment: rand-m5-mstd0.5-inc1, re_prob: 0.2}
"""
TIMED = {"seconds", "images_per_second", "waiting", "peak_memory_mb"}


def main() -> int:
    """Both runs, and what they have in common."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.yaml").write_text(RECIPE)
        whole, cut = folder / "whole", folder / "cut"
        start(folder, whole).wait()
        kills = kill_often(folder, cut, options.kills, random.Random(options.seed))
        print(f"{kills} kills")
        return compare(whole, cut) or (kills < options.kills)


def start(folder: Path, run: Path) -> subprocess.Popen[bytes]:
    """The training, begun or continued by the same command."""
    command = [f"--recipe={folder / 'recipe.yaml'}", f"--output={run}", "--auto_resume=true"]
    return subprocess.Popen(
        [sys.executable, "-m", "conformer_vision", "train", *command], stdout=subprocess.DEVNULL
    )


def kill_often(folder: Path, run: Path, kills: int, rng: random.Random) -> int:
    """Kills the run at random moments, some of them before it has trained on; then lets it end."""
    done = 0
    while done < kills:
        process = start(folder, run)
        before = steps(run)
        limit = time.monotonic() + 120
        # Now and then before the first step; else up to some steps after what was saved.
        wanted = before + rng.choice([0, 1, 2, 5, 9])
        while process.poll() is None and steps(run) < wanted and time.monotonic() < limit:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is not None:
            print(f"the run ended after {done} kills; it is too short")
            return done
        process.kill()
        process.wait()
        done += 1
        print(f"kill {done} after step {steps(run)} was saved", flush=True)
    start(folder, run).wait()
    return done


def steps(run: Path) -> int:
    """Optimiser steps that the last checkpoint has seen."""
    try:
        return int(torch.load(run / "last.ckpt", map_location="cpu", weights_only=True)["global_step"])
    except OSError:
        return 0


def compare(whole: Path, cut: Path) -> bool:
    """Whether anything differs; prints what was compared."""
    differs = False
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_file(whole / name), load_file(cut / name)
        equal = a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        print(f"{name}: {len(a)} tensors {'equal bit for bit' if equal else 'DIFFER'}")
        differs |= not equal
    equal = rows(whole) == rows(cut)
    print(f"metrics.csv: {len(rows(whole)) - 1} epochs {'equal' if equal else 'DIFFER'}")
    return differs or not equal


def rows(run: Path) -> list[list[str]]:
    """The metrics without those of time and memory."""
    lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(lines[0]) if name not in TIMED]
    return [[line[i] for i in kept] for line in lines]


if __name__ == "__main__":
    sys.exit(main())
