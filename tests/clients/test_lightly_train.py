"""lightly-train: pretraining without labels, by the model's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

import conformer_vision
from clients import HEIGHT, NAME, PARTS, WIDTH, WITHOUT, check_losses, images, same_elsewhere

lightly_train = pytest.importorskip("lightly_train", reason=WITHOUT)


def test_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(6):
        pixels = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(photos / f"{number}.png")
    made: list[dict[str, torch.Tensor]] = []
    create = timm.create_model

    def remember(*args: Any, **kwargs: Any) -> Any:
        model = create(*args, **kwargs)
        made.append({name: value.clone() for name, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(timm, "create_model", remember)
    lightly_train.pretrain(
        out=out,
        data=photos,
        model=f"timm/{NAME}",
        method="simclr",
        epochs=1,
        batch_size=2,
        num_workers=0,
        devices=1,
        accelerator="cpu",
        transform_args={"image_size": (96, 128)},
        loggers={"tensorboard": None},
        trainer_args={"log_every_n_steps": 1},
    )
    monkeypatch.undo()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    check_losses([row["train_loss"] for row in rows if "train_loss" in row])
    file = out / "exported_models" / "exported_last.pt"
    exported = torch.load(file, weights_only=True)
    model = create(NAME, num_classes=5)
    conformer_vision.load_checkpoint(model, file, reset_head=True)
    for part in PARTS:
        names = [name for name in exported if name.endswith(part)]
        assert names and not any(torch.equal(exported[name], made[-1][name]) for name in names), part
    again = f"""
import conformer_vision, timm
model = timm.create_model("{NAME}", num_classes=5)
"""
    same_elsewhere(model, again, tmp_path, images())
