"""How long commands take from a cold start, in new processes that take turns.

The files are in the system's cache, as they are the second time that somebody types a command. Reported are
the medians of wall time and of the processor's, which other work on the machine makes less uncertain.

    python benchmarks/starting.py                            # S with random weights
    python benchmarks/starting.py --model runs/demo --repeats 9 --json starting.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from conformer_vision import export
from conformer_vision.benchmark.machine import Machine, versions
from predicting import write_photos, write_run

COMMAND = (sys.executable, "-m", "conformer_vision")


@dataclass(frozen=True)
class Row:
    """One command."""

    name: str
    wall_seconds: float
    cpu_seconds: float
    walls: list[float]


def commands(model: Path, photo: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what is started, by its name in the table."""
    onnx, openvino = folder / "model.onnx", folder / "model.xml"
    export(model, format="onnx", output=onnx)
    export(model, format="openvino", output=openvino)
    predict = (*COMMAND, "predict")
    return {
        "import torch": (sys.executable, "-c", "import torch"),
        "import torch, timm": (sys.executable, "-c", "import torch, timm"),
        "--help": (*COMMAND, "--help"),
        "models": (*COMMAND, "models"),
        "predict RUN photo.jpg": (*predict, str(model), str(photo)),
        "predict model.onnx photo.jpg": (*predict, str(onnx), str(photo)),
        "predict model.xml photo.jpg": (*predict, str(openvino), str(photo)),
    }


def start(command: tuple[str, ...]) -> tuple[float, float]:
    """Return the wall time and the processor's time of a process."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="conformer_small_patch16_224", help="run folder, or a name for random weights"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (photo,) = write_photos(folder, 1)
        given = Path(args.model)
        model = given if given.is_dir() else write_run(folder / "run", args.model)
        started = commands(model, photo, folder)
        for command in started.values():
            start(command)  # into the system's cache
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in started}
        order = [name for name in started for _ in range(args.repeats)]
        random.Random(0).shuffle(order)
        for name in order:
            taken[name].append(start(started[name]))
    rows = [
        Row(name, median(wall for wall, _ in times), median(cpu for _, cpu in times), [w for w, _ in times])
        for name, times in taken.items()
    ]
    machine = Machine.here(torch.device("cpu"))
    print(f"{machine}; medians of {args.repeats} starts")
    print(f"{'':32} {'seconds':>8} {'of CPU':>8}")
    for row in rows:
        print(f"{row.name:32} {row.wall_seconds:8.2f} {row.cpu_seconds:8.2f}")
    if args.json:
        figures = {"machine": asdict(machine), "versions": versions(), "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
