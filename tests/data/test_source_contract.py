"""The contract of sources, for every form but torchvision's sets (test_named.py)."""

import csv
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import ImageFolder

from contracts.source import SourceContract, digest, several
from streamed import NAMES, colour, opened_stream, read, write_rows, write_shards


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_folders(root: Path, files: list[bytes]) -> Path:
    for number, data in enumerate(files):
        (root / NAMES[number % 3]).mkdir(parents=True, exist_ok=True)
        (root / NAMES[number % 3] / f"{number}.png").write_bytes(data)
    return root


def rows(files: list[bytes]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))})
    images = [{"bytes": data, "path": None} for data in files]
    labels = [number % 3 for number in range(len(files))]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features)


class TestFolder(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        return write_folders(root / "set", files)


class TestTable(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        write_folders(root / "images", files)
        with open(root / "set.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "LABEL"])
            for number in range(len(files)):
                name = NAMES[number % 3]
                writer.writerow([f"images/{name}/{number}.png", name])
        return root / "set.csv"


class TestParquet(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        lengths = [12] * (len(files) // 12) + [len(files) % 12] * (len(files) % 12 > 0)
        write_rows(root / "set", lengths, images=dict(enumerate(files)))
        return root / "set"


class TestSaved(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        rows(files).save_to_disk(root / "set")
        return root / "set"


class TestHub(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> str:
        write_rows(root / "set", [len(files)], images=dict(enumerate(files)))
        return f"hfds/{root / 'set'}"


class TestZip(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        folder = write_folders(root / "images", files)
        with zipfile.ZipFile(root / "set.zip", "w") as packed:
            for path in folder.rglob("*.png"):
                packed.write(path, path.relative_to(folder))
        return root / "set.zip"


class TestTar(SourceContract):
    def write(self, root: Path, files: list[bytes]) -> Path:
        folder = write_folders(root / "images", files)
        with tarfile.open(root / "set.tar.gz", "w:gz") as packed:
            packed.add(folder, "set")
        return root / "set.tar.gz"


class TestTorchvisionFolder(SourceContract):
    grows = False  # as a folder does; the options are those of the last one

    def write(self, root: Path, files: list[bytes]) -> str:
        self.options = {"data_dir": write_folders(root / "set", files)}
        return "torch/image_folder"


class TestTableOfLists(SourceContract):
    """With several labels per image."""

    multilabel = True

    def write(self, root: Path, files: list[bytes]) -> Path:
        write_folders(root / "images", files)
        with open(root / "set.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "Labels"])
            for number, names in enumerate(several(len(files))):
                writer.writerow([f"images/{NAMES[number % 3]}/{number}.png", json.dumps(names)])
        return root / "set.csv"


class TestColumnsPerClass(SourceContract):
    multilabel = True
    options = {"label_column": ",".join(NAMES)}  # noqa: RUF012

    def write(self, root: Path, files: list[bytes]) -> Path:
        images = [{"bytes": data, "path": None} for data in files]
        flags = {name: [name in names for names in several(len(files))] for name in NAMES}
        features = datasets.Features(
            {"image": datasets.Image(), **dict.fromkeys(NAMES, datasets.Value("bool"))}
        )
        datasets.Dataset.from_dict({"image": images, **flags}, features).to_parquet(root / "set.parquet")
        return root / "set.parquet"


class TestListColumn(SourceContract):
    multilabel = True

    def write(self, root: Path, files: list[bytes]) -> Path:
        kind = datasets.Sequence(datasets.ClassLabel(names=list(NAMES)))
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        images = [{"bytes": data, "path": None} for data in files]
        labels = [[NAMES.index(name) for name in names] for names in several(len(files))]
        datasets.Dataset.from_dict({"image": images, "label": labels}, features).save_to_disk(root / "set")
        return root / "set"


class TestMultiHotDataset(SourceContract):
    multilabel = True
    keeps_files = False

    def write(self, root: Path, files: list[bytes]) -> Any:
        pixels = torch.tensor([colour(number) for number in range(len(files))], dtype=torch.uint8)
        hot = torch.tensor([[name in names for name in NAMES] for names in several(len(files))])
        dataset = TensorDataset(pixels[:, :, None, None].expand(-1, 3, 8, 8), hot)
        dataset.classes = list(NAMES)  # type: ignore[attr-defined]
        return dataset


class TestDigits(SourceContract):
    keeps_files = False
    grows = False

    def write(self, root: Path, files: list[bytes]) -> str:
        return "digits"


class TestDataset(SourceContract):
    keeps_files = False

    def write(self, root: Path, files: list[bytes]) -> Any:
        pixels = torch.tensor([colour(number) for number in range(len(files))], dtype=torch.uint8)
        images = pixels[:, :, None, None].expand(-1, 3, 8, 8)
        dataset = TensorDataset(images, torch.arange(len(files)) % 3)
        dataset.classes = list(NAMES)  # type: ignore[attr-defined]
        return dataset


class TestSubset(SourceContract):
    """A wrapper that has got class names; the files' names decide about the split."""

    keeps_files = False

    def write(self, root: Path, files: list[bytes]) -> Any:
        folder = ImageFolder(write_folders(root / "set", files))
        subset = Subset(folder, list(range(len(files))))
        subset.classes = folder.classes  # type: ignore[attr-defined]
        return subset


def test_a_new_process_reads_the_same(tmp_path: Path) -> None:
    """All forms in one, as it takes seconds to import their libraries."""
    sources = []
    for contract in SourceContract.__subclasses__():
        if contract.__module__ == __name__:
            form = contract()
            sources.append(form.open(form.written(tmp_path / contract.__name__)))
    assert len(sources) == 15
    streams = [
        opened_stream(write(tmp_path / write.__name__, [5, 5, 2]), "train")
        for write in (write_rows, write_shards)
    ]
    (tmp_path / "sources.pickle").write_bytes(pickle.dumps((sources, streams)))
    code = "import sys, pickle; sys.path[:0] = sys.argv[2:]; from contracts.source import digest; "
    code += "from streamed import read; sources, streams = pickle.load(open(sys.argv[1], 'rb')); "
    code += "print([digest(each) for each in sources], [[i.name for i in read(s, seed=1)] for s in streams])"
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, tmp_path / "sources.pickle", tests, tests / "support"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    names = [[item.name for item in read(stream, seed=1)] for stream in streams]
    assert done.stdout.strip() == f"{[digest(source) for source in sources]} {names}", done.stderr
