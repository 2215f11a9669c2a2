"""Run folders as training writes them, with weights that were not trained: made in a moment."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import timm
import torch

from conformer_vision.spec import ModelSpec
from conformer_vision.training import TrainConfig
from conformer_vision.weights import save_model
from image_sets import write_folders

CONFORMER = "conformer_nano_patch8_64"
SHALLOW = {"depths": [2, 1, 2], "zero_init_last": False}
MakeRun = Callable[..., Path]
"""(model, classes, data, **changes to the config) -> run folder."""


def write_images(root: Path, counts: dict[str, int]) -> Path:
    """A folder with a split of its own: in ``val`` so many noisy images of each class, in ``train`` one."""
    folders = {
        f"{split}/{name}": count if split == "val" else 1
        for name, count in counts.items()
        for split in ("train", "val")
    }
    return write_folders(root, folders, size=(120, 90))


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    def make(
        model: str, classes: Sequence[str], data: Path | str, *, epochs: int = 3, **changes: object
    ) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "my run"
        folder.mkdir()
        kwargs = SHALLOW if model == CONFORMER else {}
        config = TrainConfig.from_options(
            **{"data": str(data), "model": model, "model_kwargs": kwargs} | changes
        )
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        torch.manual_seed(2)
        network = timm.create_model(model, num_classes=len(classes), **kwargs)
        noise = torch.randn(16, 3, 32, 32)
        for _ in range(3):  # running statistics that fit the activations
            network.train()(noise)
        for module in network.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == len(classes):
                torch.nn.init.normal_(module.weight, std=0.3)
        spec = ModelSpec(model, kwargs, tuple(classes), (3, 32, 32), crop_pct=1.0)
        save_model(network, spec, folder / "best.safetensors")
        heads = ("conv", "trans", "fused") if model == CONFORMER else ("fused",)
        with (folder / "metrics.csv").open("w", newline="") as file:
            names = ["epoch", "step", "lr", "train_loss", "val_loss", *(f"val_top1_{h}" for h in heads)]
            writer = csv.writer(file)
            writer.writerow([*names, "seconds", "images_per_second", "waiting", "peak_memory_mb"])
            for i in range(epochs):
                row = [i + 1, 10 * (i + 1), 1e-3 / (i + 1), 2.5 - i / 9, "nan" if i == 1 else 2.4 - i / 9]
                writer.writerow([*row, *(0.2 + i / 20 for _ in heads), 61 * (i + 1), 100 + i, 0.25, 640.0])
        return folder

    return make
