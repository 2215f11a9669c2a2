from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import TensorDataset

import conformer_vision  # noqa: F401  # registers the models
from conformer_vision.data import AugmentConfig, ImageDataModule, Splitting, build_transform, open_images
from conformer_vision.data.exclude import write_exclusions
from conformer_vision.errors import UserError

NAME = "conformer_nano_patch4_32"


class Record(lightning.LightningModule):
    """Keeps which images a training saw."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3 * 32 * 32, 10)
        self.seen: list[tuple[int, list[int], float]] = []
        self.validated: list[int] = []

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        images, labels, indices, _ = batch
        self.seen.append((self.current_epoch, indices.tolist(), float(images.sum())))
        return torch.nn.functional.cross_entropy(self.head(images.flatten(1)), labels)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.validated += batch[2].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def trainer(tmp_path: Path, **options: Any) -> lightning.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **options)


def test_a_trainer_gets_what_training_does(tmp_path: Path) -> None:
    data = ImageDataModule("digits", NAME, batch_size=300, splitting=Splitting(0.2, 5), seed=3)
    assert len(data.classes) == 10 and data.preprocessing.input_size == (3, 32, 32)
    model = Record()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False, num_sanity_val_steps=0).fit(model, data)
    expected = open_images("digits", "train", Splitting(0.2, 5))
    for epoch in (0, 1):
        indices = [number for at, numbers, _ in model.seen if at == epoch for number in numbers]
        assert len(indices) == len(set(indices)) == len(expected) // 300 * 300
    assert model.seen[0][1] != model.seen[len(model.seen) // 2][1]
    assert sorted(model.validated) == sorted([*range(len(data.val_images))] * 2)
    val = next(iter(data.val_dataloader()))
    transform = build_transform(data.preprocessing)
    assert torch.equal(val.images[7], transform(open_images("digits", "val", Splitting(0.2, 5))[7][0]))  # type: ignore[index]


def test_a_resumed_trainer_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(name: str, checkpoint: Path | None = None) -> Record:
        torch.manual_seed(0)
        model = Record()
        data = ImageDataModule("digits", NAME, batch_size=400, augment=AugmentConfig(hflip=0.5))
        save = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=6, save_top_k=-1)
        fit = trainer(tmp_path, max_epochs=3, num_sanity_val_steps=0, callbacks=[save])
        fit.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        return model

    whole = run("whole")
    rest = run("rest", tmp_path / "whole" / "step=6.ckpt")
    assert len(whole.seen) == 12, "four batches an epoch"
    assert rest.seen == whole.seen[6:]


def test_accumulated_batches_share_a_step(tmp_path: Path) -> None:
    model = Record()
    data = ImageDataModule("digits", NAME, batch_size=400)
    options: dict[str, Any] = {
        "accumulate_grad_batches": 4,
        "limit_val_batches": 0,
        "enable_checkpointing": False,
    }
    trainer(tmp_path, max_steps=1, **options).fit(model, data)
    assert [len(numbers) for _, numbers, _ in model.seen] == [100] * 4


def test_preprocessing_and_exclusions(tmp_path: Path) -> None:
    config = timm.data.resolve_model_data_config(timm.create_model(NAME, num_classes=10))
    assert ImageDataModule("digits", config).preprocessing == ImageDataModule("digits", NAME).preprocessing
    write_exclusions(tmp_path / "list.csv", [("digits row 0", ""), ("digits row 1", "")])
    data = ImageDataModule("digits", NAME, exclude=tmp_path / "list.csv")
    assert len(data.train_images) + len(data.val_images) == 1795  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean conformer_nano_patch4_32"):
        ImageDataModule("digits", "conformer_nano_patch4_3")
    with pytest.raises(UserError, match="preprocessing lacks mean"):
        ImageDataModule("digits", {"input_size": (3, 32, 32)})


def test_a_python_dataset() -> None:
    pixels = torch.from_numpy(np.arange(20 * 192, dtype=np.float32).reshape(20, 3, 8, 8) % 256 / 255)
    dataset = TensorDataset(pixels, torch.arange(20) % 2)
    dataset.classes = ["even", "odd"]  # type: ignore[attr-defined]
    data = ImageDataModule(dataset, NAME, batch_size=4)
    assert data.classes == ("even", "odd")
    assert len(data.train_images) + len(data.val_images) == 20  # type: ignore[arg-type]
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 32, 32) and set(batch.labels.tolist()) <= {0, 1}
