"""Time and memory of a training step in every mode of grad_checkpointing, beside the plain formulation.

A step is forward, backward and AdamW on the mean of both heads' cross-entropies, as in training. Ours takes
the optimiser of ``conformer-vision train`` and its choice for Linear layers; the plain formulation, with the
same weights, takes ``torch.optim.AdamW`` with its own settings, as the authors' code does. All run in one
process and take turns, so that whatever slows the machine slows all of them. Reported are medians, their
ratio (above 1: ours is faster), how far the gradients of the first step lie apart, and the most memory of
each, in a process of its own: weights, gradients, the optimiser's state and what is kept for backward,
without what Python and the libraries take.

    python benchmarks/training_step.py --models conformer_tiny_patch16_224 --batch 8 --repeats 10
    python benchmarks/training_step.py --device cuda --dtype bfloat16 --channels-last --json step.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comparison.ceiling import measure_ceilings
from comparison.measure import ratio
from comparison.probe import held_memory_mb, peak_memory_mb
from comparison.subjects import measuring
from conformer_vision.benchmark.machine import Machine, versions
from conformer_vision.benchmark.timing import take_turns
from conformer_vision.models.checkpoints import to_official
from conformer_vision.models.pointwise import PointwiseLinear, use_pointwise
from conformer_vision.training import TrainConfig
from conformer_vision.training.linear import choose_linear
from conformer_vision.training.optimization import build_optimizer
from oracle import ReferenceConformer, build_pair, count_macs

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
TRAINED_IN = {"float32": "32", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


def build_step(name: str, which: str, arguments: argparse.Namespace) -> tuple[nn.Module, Callable[[], None]]:
    """Return a model in training mode and its step, on images that stay the same.

    Args:
        name: The model's name in timm's registry.
        which: ``plain``, or our mode of grad_checkpointing.
        arguments: Those of the command line.
    """
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    ours, plain = build_pair(name)
    model = (plain if which == "plain" else ours).to(device, memory_format=layout).train()
    branches: Callable[[Tensor], tuple[Tensor, Tensor]] = plain if which == "plain" else ours.forward_branches
    if which != "plain":
        ours.set_grad_checkpointing(which)
    config = TrainConfig.from_options(
        data="none", lr=1e-6, min_lr=0.0, weight_decay=0.05, precision=TRAINED_IN[arguments.dtype]
    )
    if which != "plain" and choose_linear(ours, config.hardware, device=device, processes=1) == "convolution":
        use_pointwise(ours)
    options = config.optimizer
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        if which == "plain"
        else build_optimizer(model, options)
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=generator)
    images = images.to(device, memory_format=layout)
    target = torch.arange(arguments.batch, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            conv, trans = branches(images)
            loss = (F.cross_entropy(conv, target) + F.cross_entropy(trans, target)) / 2
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return model, step


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of the last step, by the authors' names."""
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return found if isinstance(model, ReferenceConformer) else to_official(found)


def distance(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over their norm."""
    pairs = [(ours[name].double(), value.double()) for name, value in plain.items()]
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return float(np.sqrt(difference / sum(float(b.square().sum()) for _, b in pairs)))


def computes_as_convolution(model: nn.Module) -> bool:
    """Tell whether the Linear layers of a model compute as convolutions."""
    return any(isinstance(module, PointwiseLinear) for module in model.modules())


def peak_memory(name: str, which: str, arguments: argparse.Namespace) -> float:
    """The most memory of three steps in MB, without what was there before the model."""
    device = torch.device(arguments.device)
    with measuring(arguments.threads):
        before = held_memory_mb(device)
        _, step = build_step(name, which, arguments)
        for _ in range(3):
            step()
        return peak_memory_mb(device) - before


def memory_in_own_process(name: str, which: str, arguments: argparse.Namespace) -> float:
    """Return `peak_memory`, measured in a new process."""
    options = {
        "--models": name,
        "--memory-of": which,
        **{f"--{key}": getattr(arguments, key) for key in ("batch", "size", "device", "dtype", "threads")},
    }
    command = [sys.executable, __file__, *(str(part) for option in options.items() for part in option)]
    command += ["--channels-last"] * arguments.channels_last
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per mode of grad_checkpointing."""
    forms = ["plain", *arguments.checkpointing]
    memory = {which: memory_in_own_process(name, which, arguments) for which in forms}
    models, steps = zip(*(build_step(name, which, arguments) for which in forms), strict=True)
    for step in steps:
        step()
    apart = [distance(gradients(model), gradients(models[0])) for model in models[1:]]
    times = take_turns(list(steps), rounds=arguments.repeats, seconds=arguments.seconds)
    macs = 3 * count_macs(models[0], (3, arguments.size, arguments.size))
    rows = []
    for which, model, here, far in zip(arguments.checkpointing, models[1:], times[1:], apart, strict=True):
        faster = ratio(here, times[0])
        rows.append(
            {
                "model": name,
                "checkpointing": which,
                "linear": "convolution" if computes_as_convolution(model) else "matmul",
                "ours_ms": float(np.median(here)),
                "plain_ms": float(np.median(times[0])),
                "ratio": faster.median,
                "ratio_quartiles": (faster.low, faster.high),
                "images_per_second": 1e3 * arguments.batch / float(np.median(here)),
                "gmacs": macs / 1e9,
                "ours_mb": memory[which],
                "plain_mb": memory["plain"],
                "memory": memory[which] / memory["plain"],
                "gradients_apart": far,
                "times_ms": here,
            }
        )
    return rows


def main() -> None:
    """Print one line per model and mode."""
    parser = argparse.ArgumentParser(description="A training step here and in the plain formulation")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["conformer_tiny_patch16_224", "conformer_small_patch16_224"],
        help="names in timm's registry",
    )
    parser.add_argument("--batch", type=int, default=8, help="images at once")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument(
        "--checkpointing", nargs="+", default=["off", "cheap", "full"], help="modes of grad_checkpointing"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds")
    parser.add_argument("--seconds", type=float, default=600.0, help="no further round begins after them")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=list(PRECISIONS), help="of autocast")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--channels-last", action="store_true", help="channels-last memory for both")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument(
        "--memory-of", help="print the peak memory of the first model alone: of plain, off, cheap or full"
    )
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(arguments.models[0], arguments.memory_of, arguments))
        return

    device = torch.device(arguments.device)
    precision = PRECISIONS[arguments.dtype]
    with measuring(arguments.threads):
        machine = Machine.here(device)
        ceiling = measure_ceilings([precision], device)[precision]
        print(
            f"{machine.gpu or machine.processor}, {machine.threads} threads, torch {torch.__version__},"
            f" {arguments.dtype}, batch {arguments.batch}, {arguments.size} pixels"
        )
        print(f"matrix products: {ceiling / 1e9:,.0f}e9 multiply-adds per second")
        print(
            f"{'model':28} {'mode':5} {'ours ms':>9} {'plain ms':>9} {'ratio':>6} {'of ceiling':>10}"
            f" {'ours MB':>8} {'plain MB':>9} {'share':>6} {'gradients':>9}"
        )
        rows = []
        for name in arguments.models:
            for row in measure(name, arguments):
                row["share_of_ceiling"] = row["gmacs"] * 1e9 * row["images_per_second"] / ceiling
                rows.append(row)
                line = "{model:28} {checkpointing:5} {ours_ms:9.1f} {plain_ms:9.1f} {ratio:6.2f}"
                line += " {share_of_ceiling:10.0%} {ours_mb:8.0f} {plain_mb:9.0f} {memory:6.0%}"
                print((line + " {gradients_apart:9.0e}").format(**row), flush=True)
    if any(row["linear"] == "convolution" for row in rows):
        print("Linear layers of ours compute as convolutions, which is faster here.")
    print("of ceiling: of the plain formulation's multiply-adds, three times those of a prediction.")
    if arguments.json:
        options = {key: str(value) for key, value in vars(arguments).items()}
        content = {"machine": asdict(machine), "versions": versions(), "options": options, "rows": rows}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
