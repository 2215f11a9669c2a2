"""peft: LoRA on the attention, with the BatchNorms among the modules to save."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from clients import WITHOUT, fresh_process, images

peft = pytest.importorskip("peft", reason=WITHOUT)

NAME = "conformer_nano_patch8_64"
TARGETS = ["qkv", "fc1", "fc2"]
KEPT = ["conv_head", "trans_head", "bn", "bn1", "bn2", "bn3", "shortcut_bn"]
AGAIN = f"""
import sys
import peft, timm, torch
import conformer_vision
base = timm.create_model("{NAME}", pretrained=True, num_classes=5)
model = peft.PeftModel.from_pretrained(base, sys.argv[1]).eval()
with torch.inference_mode():
    torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


def trained(kept: list[str]) -> torch.nn.Module:
    base = timm.create_model(NAME, pretrained=True, num_classes=5)
    model: torch.nn.Module = peft.get_peft_model(
        base, peft.LoraConfig(r=4, target_modules=TARGETS, modules_to_save=kept)
    )
    x, labels = images(height=125, width=166), torch.tensor([1, 2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    adapters = [(n, p) for n, p in model.named_parameters() if "lora_B" in n]
    assert len(adapters) == 3 * 12 and all(p.grad is not None and p.grad.abs().sum() > 0 for _, p in adapters)
    return model.eval()


def answers_elsewhere(model: torch.nn.Module, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model says, and what a fresh process says that reads its adapter."""
    x = images(height=125, width=166)
    with torch.inference_mode():
        expected = model(x)
    model.save_pretrained(folder / "adapter")  # type: ignore[operator]
    torch.save(x, folder / "images.pt")
    fresh_process(AGAIN, folder / "adapter", folder / "images.pt", folder / "answer.pt")
    return torch.load(folder / "answer.pt"), expected


def test_the_recipe_keeps_the_statistics(tmp_path: Path) -> None:
    actual, expected = answers_elsewhere(trained(KEPT), tmp_path)
    torch.testing.assert_close(actual, expected)


def test_without_the_norms_the_statistics_are_lost(tmp_path: Path) -> None:
    """The pitfall that docs/backbone.md names."""
    actual, expected = answers_elsewhere(trained(["conv_head", "trans_head"]), tmp_path)
    assert (actual - expected).abs().max() > 0.01


def test_kept_modules_are_all_norms_and_heads() -> None:
    model = timm.create_model(NAME, num_classes=5)
    norms = [name for name, each in model.named_modules() if isinstance(each, torch.nn.BatchNorm2d)]
    assert all(name.rpartition(".")[2] in KEPT for name in norms) and len(norms) == 85
