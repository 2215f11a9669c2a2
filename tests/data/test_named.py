import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from conformer_vision.errors import UserError
from contracts.source import SourceContract
from image_sets import opened

WORDS = ["plane", "car", "bird"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Downloads fail; what would have been fetched is listed."""
    from urllib.error import URLError

    asked: list[str] = []

    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        asked.append(url)
        print("Downloading", url)
        raise URLError("no network\nin tests")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    return asked


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with 4 training images each and 6 for testing; torchvision is told their MD5."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, content: Any) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(first: int, count: int) -> dict[str, Any]:
        pixels = np.zeros((count, 3, 32, 32), np.uint8)
        pixels[:, 0] = np.arange(first, first + count)[:, None, None]
        return {"data": pixels.reshape(count, -1), "labels": [i % 3 for i in range(first, first + count)]}

    train = [write(f"data_batch_{i + 1}", batch(4 * i, 4)) for i in range(5)]
    test = [write("test_batch", batch(100, 6))]
    meta = write("batches.meta", {"label_names": WORDS})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return tmp_path


def write_mnist(root: Path, *, train: int = 20, test: int = 10) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for word, count in (("train", train), ("t10k", test)):
        pixels = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 28, 28), np.uint8)
        head = b"".join(n.to_bytes(4, "big") for n in (0x803, count, 28, 28))
        (raw / f"{word}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = b"".join(n.to_bytes(4, "big") for n in (0x801, count))
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(head + bytes(i % 10 for i in range(count)))
    return root


class TestCifar(SourceContract):
    keeps_files = False
    own_splits = True

    @pytest.fixture(autouse=True)
    def _files(self, cifar: Path) -> None:
        self.options = {"data_dir": cifar}

    def write(self, root: Path, files: list[bytes]) -> str:
        return "torch/cifar10"


def test_cifar10(cifar: Path, no_network: list[str]) -> None:
    train, val, both = (opened("torch/cifar10", split=s, data_dir=cifar) for s in ("train", "val", "all"))
    assert train.classes == tuple(WORDS)
    assert (len(train), len(val), len(both)) == (20, 6, 26)
    for source, first in ((train, 0), (val, 100)):
        for i in range(len(source)):
            image, label = source[i]
            assert (image.mode, image.size, image.getpixel((5, 5))) == ("RGB", (32, 32), (first + i, 0, 0))
            assert label == (first + i) % 3
    assert (train.name(3), both.name(25)) == ("torch/cifar10 train row 3", "torch/cifar10 test row 5")
    assert train.mirrorable
    again = pickle.loads(pickle.dumps(val))
    assert again[4][0].getpixel((0, 0)) == (104, 0, 0)
    mixed = opened("Torch/CIFAR10", split="val", data_dir=cifar, classes=["bird", "new", "car", "plane"])
    assert [mixed.classes[i] for i in mixed.labels] == [val.classes[i] for i in val.labels]
    folds = [opened("torch/cifar10", split="val", data_dir=cifar, folds=4, fold=i) for i in range(4)]
    names = [fold.name(i) for fold in folds for i in range(len(fold))]
    assert sorted(names) == sorted(train.name(i) for i in range(20))
    assert folds[0][0][0].getpixel((0, 0)) == (int(folds[0].name(0).split()[-1]), 0, 0)
    assert no_network == []


class _Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["data_batch_2", "test_batch", "batches.meta"])
def test_other_pickles_are_never_opened(cifar: Path, tmp_path: Path, name: str) -> None:
    trap = pickle.dumps(_Trap(tmp_path / "sprung"))
    (cifar / "cifar-10-batches-py" / name).write_bytes(trap)
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"{name} is not the file that was published"):
            opened("torch/cifar10", split=split, data_dir=cifar)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap works


def test_mnist(tmp_path: Path, no_network: list[str]) -> None:
    write_mnist(tmp_path)
    train, val = (opened("torch/mnist", split=split, data_dir=str(tmp_path)) for split in ("train", "val"))
    assert (train.classes[2], len(train), len(val)) == ("2 - two", 20, 10)
    image, label = train[13]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("RGB", (28, 28), (13, 13, 13), 3)
    assert not train.mirrorable
    assert no_network == []


def test_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "conformer-vision" / "torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(opened("torch/mnist", split="val")) == 10


@pytest.mark.parametrize("name", ["image_folder", "folder"])
def test_class_folders(tmp_path: Path, class_folders: Callable[..., Path], name: str) -> None:
    class_folders(tmp_path / "train", ["a", "b"], count=3)
    class_folders(tmp_path / "val", ["a", "b"], count=1)
    assert len(opened(f"torch/{name}", split="train", data_dir=tmp_path)) == 6
    with pytest.raises(UserError, match="needs data_dir, the folder of class folders"):
        opened(f"torch/{name}", split="train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "qmnist"])
def test_missing_files_and_no_network(
    tmp_path: Path, no_network: list[str], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=rf"torch/{name} can neither be read from .* nor downloaded"
    ) as caught:
        opened(f"torch/{name}", split="train", data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert no_network
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08\x03" + b"\0" * 4, b"text" * 10, b"\0\0\x08\x01\0\0\0\x02\x01"]
)
def test_damaged_mnist(tmp_path: Path, content: bytes) -> None:
    for word in ("train-images-idx3", "train-labels-idx1"):
        root = write_mnist(tmp_path / word)
        (root / "MNIST" / "raw" / f"{word}-ubyte").write_bytes(content)
        with pytest.raises(UserError, match=r"torch/mnist") as caught:
            opened("torch/mnist", split="train", data_dir=root)
        assert "\n" not in str(caught.value)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match=r"torch/cifar is not a set.*; did you mean cifar10\?"):
        opened("torch/cifar", split="train")
    with pytest.raises(UserError, match=r"torch/zzzz is not a set.*; it knows cifar10, cifar100"):
        opened("torch/zzzz", split="train")
