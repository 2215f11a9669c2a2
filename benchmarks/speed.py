"""Time this package's Conformer against the plain formulation with the same weights.

Both run in one process and take turns, so that whatever else slows the machine slows both. Reported are
medians and their ratio, plain to ours (above 1: ours is faster), of the forward pass in evaluation mode and
of forward and backward pass in training mode (mean of both heads' cross-entropies, as in training).

    python benchmarks/speed.py --models conformer_tiny_patch16_224 --batch 8 --repeats 10
    python benchmarks/speed.py --device cuda --dtype bfloat16 --channels-last --json speed.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairs import build_pair

PUBLISHED = [
    "conformer_tiny_patch16_224",
    "conformer_small_patch16_224",
    "conformer_small_patch32_224",
    "conformer_base_patch16_224",
]


def forward(branches: Callable[[Tensor], tuple[Tensor, Tensor]], model: nn.Module, x: Tensor) -> None:
    """One prediction."""
    model.eval()
    with torch.inference_mode():
        branches(x)


def forward_backward(
    branches: Callable[[Tensor], tuple[Tensor, Tensor]], model: nn.Module, x: Tensor
) -> None:
    """One training step without the optimiser."""
    model.train()
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)
    conv, trans = branches(x)
    ((F.cross_entropy(conv, target) + F.cross_entropy(trans, target)) / 2).backward()
    model.zero_grad(set_to_none=True)


def interleave(calls: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median milliseconds of each call, all of them in turn per repeat, after two rounds of warming up."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(-2, repeats):
        for call, record in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                record.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(record) for record in times]


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, float | str]]:
    """One row per pass of the model `name`."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    memory = torch.channels_last if arguments.channels_last else torch.contiguous_format
    ours, plain = (model.to(device, dtype, memory_format=memory) for model in build_pair(name))
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    x = x.to(device, dtype, memory_format=memory)
    rows: list[dict[str, float | str]] = []
    for run in (forward, forward_backward):
        calls = [partial(run, ours.forward_branches, ours, x), partial(run, plain, plain, x)]
        here, there = interleave(calls, arguments.repeats, device)
        rows.append(
            {"model": name, "pass": run.__name__, "ours_ms": here, "plain_ms": there, "ratio": there / here}
        )
    return rows


def main() -> None:
    """Print one line per model and pass."""
    parser = argparse.ArgumentParser(description="Conformer here against its plain formulation")
    parser.add_argument("--models", nargs="+", default=PUBLISHED, help="names in timm's registry")
    parser.add_argument("--batch", type=int, default=4, help="pictures at once")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--channels-last", action="store_true", help="channels-last memory for both")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    cuda = torch.device(arguments.device).type == "cuda"
    setting = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "batch": arguments.batch,
        "size": arguments.size,
        "dtype": arguments.dtype,
        "channels_last": arguments.channels_last,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'model':32} {'pass':17} {'ours ms':>10} {'plain ms':>10} {'ratio':>6}")
    rows = []
    for name in arguments.models:
        for row in measure(name, arguments):
            rows.append(row)
            print(
                "{model:32} {pass:17} {ours_ms:10.1f} {plain_ms:10.1f} {ratio:6.2f}".format(**row), flush=True
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({**setting, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
