"""What the tests of tests/clients share: images that are not square, three steps, and a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

NAME = "conformer_nano_patch16_224"
"""The smallest variant whose feature levels are those of a ResNet."""
SHALLOW = {"depths": (2, 1, 2), "channel_ratio": 0.5, "embed_dim": 32, "num_heads": 2, "stem_width": 32}
"""Options that make it quick."""
HEIGHT, WIDTH = 250, 333
WITHOUT = "not installed here; make test-clients installs it"


def images(count: int = 2, *, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Images (B, 3, H, W)."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def padded() -> Tensor:
    """The images, padded with zeros to multiples of 32, for clients that ask for them."""
    return nn.functional.pad(images(), (0, -WIDTH % 32, 0, -HEIGHT % 32))


def three_steps(model: nn.Module, loss: Callable[[], Tensor], *, lr: float = 1e-3) -> list[float]:
    """Train three steps; return their losses, having checked that all learned."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    check_losses(losses)
    check_gradients(model)
    return losses


def check_losses(losses: list[float]) -> None:
    """The losses are finite, and each step changed them."""
    assert torch.tensor(losses).isfinite().all() and len(set(losses)) == len(losses) >= 3


PARTS = ("stem.conv.weight", ".bottleneck.conv2.weight", ".attn.qkv.weight", ".fcu_down.proj.weight")
"""The ends of the names of parameters that stand for the stem, both branches and their coupling."""


def check_gradients(model: nn.Module) -> None:
    """The stem and every block of both branches got a gradient in the last step."""
    named = dict(model.named_parameters())
    for part in PARTS:
        found = [parameter for name, parameter in named.items() if name.endswith(part)]
        assert found, part
        for parameter in found:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, part


def fresh_process(program: str, *arguments: object, package: bool = True) -> str:
    """Run a Python program with arguments in a process of its own; return what it printed.

    Args:
        program: The program.
        arguments: What it finds in ``sys.argv``.
        package: Whether the process can import conformer_vision.
    """
    site = next(path for path in sys.path if path.endswith("site-packages"))
    source = str(Path(__file__).resolve().parents[2] / "src")
    # -S leaves out the .pth files, among them that of an editable installation.
    paths = [source, site] if package else [site]
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def same_elsewhere(model: nn.Module, build: str, folder: Path, inputs: Mapping[str, Tensor] | Tensor) -> None:
    """Save a model's state, and check that a fresh process answers as it does.

    Args:
        model: A model whose answer is a tensor.
        build: A program that makes ``model`` again.
        folder: Where the files go.
        inputs: What it is asked.
    """
    model.eval()
    with torch.inference_mode():
        expected = model(inputs)
    torch.save({"state": model.state_dict(), "inputs": inputs}, folder / "saved.pt")
    ending = """
import sys, torch
saved = torch.load(sys.argv[1], weights_only=True)
model.load_state_dict(saved["state"])
model.eval()
with torch.inference_mode():
    torch.save(model(saved["inputs"]), sys.argv[2])
"""
    fresh_process(build + ending, folder / "saved.pt", folder / "answer.pt")
    torch.testing.assert_close(torch.load(folder / "answer.pt", weights_only=True), expected)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same weights in every test."""
    torch.manual_seed(0)
    yield
