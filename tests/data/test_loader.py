import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from conformer_vision.data import AugmentConfig, BrokenImageError, build_loader, build_transform, open_source
from conformer_vision.errors import UserError


def _loader(source: Any, *, augment: AugmentConfig | None = None, **options: Any) -> DataLoader[Any]:
    transform = build_transform(
        input_size=(3, 32, 32),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bilinear",
        crop_pct=1.0,
        crop_mode="center",
        augment=augment,
    )
    settings = {"batch_size": 64, "workers": 0, "shuffle": False, "seed": 0, "drop_last": False}
    return build_loader(source, transform, **{**settings, **options})


def test_batches() -> None:
    source = open_source("digits", split="val")
    loader = _loader(source)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    images, labels = batches[0]
    assert (images.shape, images.dtype) == ((64, 3, 32, 32), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert torch.cat([labels for _, labels in batches]).tolist() == list(source.labels)
    assert len(_loader(source, drop_last=True)) == len(list(_loader(source, drop_last=True))) == 2


def _epochs(count: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    augment = AugmentConfig(color_jitter=0.4, re_prob=0.5)
    loader = _loader(open_source("digits", split="val"), augment=augment, **options)
    return [
        (torch.cat([images for images, _ in epoch]), torch.cat([labels for _, labels in epoch]))
        for epoch in (list(loader) for _ in range(count))
    ]


def test_seed_decides_order() -> None:
    first, second = _epochs(2, shuffle=True)
    assert not torch.equal(first[1], second[1])  # a new order in every epoch
    again, _ = _epochs(2, shuffle=True)
    assert torch.equal(first[0], again[0])
    other = _epochs(1, shuffle=True, seed=1)[0]
    assert not torch.equal(first[1], other[1])


def test_seed_decides_augmentation_in_workers() -> None:
    first, second = _epochs(2, workers=2)
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])  # each epoch's augmentation is its own
    again = _epochs(1, workers=2)[0]
    assert torch.equal(first[0], again[0])
    other = _epochs(1, workers=2, seed=1)[0]
    assert not torch.equal(first[0], other[0])


def test_workers_do_not_repeat_each_other(class_folders: Callable[..., Path], tmp_path: Path) -> None:
    source = open_source(class_folders(tmp_path, ["a", "b"], count=8), split="all")
    loader = _loader(source, augment=AugmentConfig(crop="rrc", color_jitter=1), batch_size=8, workers=2)
    one, two = (images for images, _ in loader)
    assert not torch.equal(one, two)  # both classes have the same pictures


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_picture_is_one_line(class_folders: Callable[..., Path], tmp_path: Path, workers: int) -> None:
    class_folders(tmp_path, ["a", "b"])
    (tmp_path / "b" / "1.png").write_bytes(b"broken")
    loader = _loader(open_source(tmp_path, split="all"), batch_size=2, workers=workers)
    for _ in range(2):  # the loader can be used again
        with pytest.raises(BrokenImageError, match=r"b/1\.png: cannot be read") as caught:
            list(loader)
        assert "\n" not in str(caught.value)


def test_source_works_in_a_spawned_process(class_folders: Callable[..., Path], tmp_path: Path) -> None:
    source = open_source(class_folders(tmp_path, ["a", "b"]), split="all")
    loader = _loader(source, workers=1)
    loader.multiprocessing_context = "spawn"
    assert len(list(loader)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_workers_survive_ctrl_c() -> None:
    code = """
import os, signal
from conformer_vision.data import build_loader, build_transform, open_source
transform = build_transform(input_size=(3, 32, 32), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear",
                            crop_pct=1.0, crop_mode="center", augment=None)
loader = build_loader(open_source("digits", split="all"), transform, batch_size=16, workers=1, shuffle=False,
                      seed=0, drop_last=False)
signal.signal(signal.SIGINT, signal.SIG_IGN)
seen = 0
for images, _ in loader:
    if not seen:
        os.killpg(0, signal.SIGINT)
    seen += len(images)
print(seen)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert (done.stdout.strip(), done.returncode) == ("1797", 0), done.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: must be 1 or more"),
        ({"workers": -1}, "workers -1: must be 0 or more"),
        ({"batch_size": 1798, "drop_last": True}, "batch_size 1798 is more than the 1797 pictures"),
    ],
)
def test_impossible_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _loader(open_source("digits", split="all"), **option)
