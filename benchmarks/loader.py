"""Time reading and augmenting images, beside torchvision's ImageFolder with torch's DataLoader.

Both read the same JPEG files with the same number of workers and equivalent transforms, a random resized
crop of 224 pixels for photos of 320 pixels and of 12 megapixels, or a padded crop of 32 for small images,
mirroring and normalisation. They take turns, so that whatever else slows the machine slows both. Reported are
medians of images per second, the ratio to torchvision (above 1: ours is faster), and the share of a short
training that waits for images.

The photos of 12 megapixels are always parts of scikit-learn's two photos, enlarged. They lack a camera's
noise, so their files are small; `--noise 4` adds it: unpacking the bytes, which nothing saves, takes longer.

    python benchmarks/loader.py                     # two photos of scikit-learn's, cut up: needs no data
    python benchmarks/loader.py --tasks large --workers 0 --no-training --noise 4
    python benchmarks/loader.py --data test.parquet --repeats 9 --json loader.json
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import platform
import statistics
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from conformer_vision.data import build_transform, open_images, require_source
from conformer_vision.data.augment import AugmentConfig
from conformer_vision.data.loader import training_loader
from conformer_vision.spec import Preprocessing
from conformer_vision.training import TrainConfig, train

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = 64
"""Pixels of the long edge up to which images count as small."""


@dataclass(frozen=True)
class Task:
    """One size of images.

    Attributes:
        size: pixels of the network's input.
        batch: images per batch.
        count: images to write, a multiple of ``batch``.
        edges: width and height of the images that are made of parts of scikit-learn's photos.
        model: what is trained to see how long it waits.
        train_batch: images per step of that training.
    """

    name: str
    size: int
    batch: int
    count: int
    edges: tuple[int, int]
    model: str
    train_batch: int


TASKS = (
    Task("photos", 224, 32, 128, (320, 320), "conformer_nano_patch16_224", 4),
    Task("large", 224, 8, 16, (4000, 3000), "conformer_nano_patch16_224", 4),
    Task("small", 32, 64, 1024, (32, 32), "conformer_nano_patch8_64", 32),
)
STEPS = 20


def cut_up(task: Task, *, noise: float = 0) -> Iterator[tuple[Image.Image, str]]:
    """Pieces of scikit-learn's two photos, in four classes; noise has that standard deviation, of 255."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(0)
    for number in range(task.count):
        photo = photos[number % 2]
        piece = int(rng.integers(150, 400))
        left, top = (int(rng.integers(edge - piece + 1)) for edge in photo.size)
        image = photo.crop((left, top, left + piece, top + piece)).resize(task.edges)
        if noise:
            added = noise * rng.standard_normal((image.height, image.width, 3), dtype=np.float32)
            image = Image.fromarray((np.asarray(image) + added).round().clip(0, 255).astype(np.uint8))
        yield image, f"class{number % 4}"


def write(folder: Path, images: Iterable[tuple[Image.Image, str]]) -> dict[str, Path]:
    """The same JPEG files as class folders, as a zip, and in a parquet file."""
    import datasets

    root = folder / "classes"
    files: list[tuple[str, bytes]] = []
    for number, (image, label) in enumerate(images):
        path = root / label / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
        files.append((label, path.read_bytes()))
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for number, (label, data) in enumerate(files):
            archive.writestr(f"{label}/{number:05d}.jpg", data)
    names = sorted({label for label, _ in files})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {
        "image": [{"bytes": data, "path": None} for _, data in files],
        "label": [names.index(label) for label, _ in files],
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / "set.parquet"))
    return {"folder": root, "zip": folder / "set.zip", "parquet": folder / "set.parquet"}


def plain_loader(root: Path, task: Task, workers: int) -> Iterable[Any]:
    """What torchvision's own examples do."""
    crop = (
        transforms.RandomCrop(task.size, padding=task.size // 8)
        if task.size <= SMALL
        else transforms.RandomResizedCrop(task.size, interpolation=transforms.InterpolationMode.BICUBIC)
    )
    stages = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return DataLoader(
        ImageFolder(str(root), transforms.Compose(stages)),
        batch_size=task.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def our_loader(spec: Path, task: Task, workers: int) -> Iterable[Any]:
    """`training_loader` over all images of the set."""
    preprocessing = Preprocessing((3, task.size, task.size), MEAN, STD)
    transform = build_transform(preprocessing, AugmentConfig())
    source = open_images(spec, "all")
    return training_loader(source, transform, batch_size=task.batch, workers=workers, seed=0)


def rates(loaders: dict[str, Iterable[Any]], repeats: int) -> dict[str, list[float]]:
    """Images per second in each epoch of each loader, in turn, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(-1, repeats):
        for name, loader in loaders.items():
            start = time.perf_counter()
            images = sum(len(batch[0]) for batch in loader)
            if repeat >= 0:
                found[name].append(images / (time.perf_counter() - start))
    return found


def measure(task: Task, files: dict[str, Path], workers: int, repeats: int) -> list[dict[str, Any]]:
    """One row per loader."""
    loaders = {"torchvision folder": plain_loader(files["folder"], task, workers)}
    loaders |= {f"ours {name}": our_loader(path, task, workers) for name, path in files.items()}
    found = rates(loaders, repeats)
    plain = found["torchvision folder"]
    return [
        {
            "task": task.name,
            "workers": workers,
            "loader": name,
            "images_per_second": statistics.median(values),
            "ratio": statistics.median(ours / other for ours, other in zip(values, plain, strict=True)),
            "epochs": values,
        }
        for name, values in found.items()
    ]


def waiting(task: Task, root: Path, folder: Path, workers: int) -> dict[str, Any]:
    """The share of a training's time in which it waits for images, and its speed."""
    config = TrainConfig.from_options(
        data=str(root),
        output=str(folder / f"run-{task.name}-{workers}"),
        model=task.model,
        pretrained=False,
        input_size=task.size,
        batch_size=task.train_batch,
        max_steps=STEPS,
        workers=workers,
        progress="plain",
        report=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its lines of progress
        run = train(config)
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        row = list(csv.DictReader(file))[-1]
    return {
        "task": task.name,
        "model": task.model,
        "batch": task.train_batch,
        "workers": workers,
        "waiting": float(row["waiting"]),
        "images_per_second": float(row["images_per_second"]),
    }


def images_of(data: Path | None, task: Task, *, noise: float) -> Iterable[tuple[Image.Image, str]]:
    """Those of the set where they are of the task's size, else pieces of photos."""
    if task.name == "large":
        return cut_up(task, noise=noise)
    if data is None:
        return cut_up(task)
    source = require_source(open_images(data, "all"), name=data)
    if (max(source.image(0).size) <= SMALL) != (task.size <= SMALL):
        return cut_up(task)
    if len(source) < task.count:
        raise SystemExit(f"{data} holds {len(source)} images; {task.count} are needed")
    rows = np.random.default_rng(0).permutation(len(source))[: task.count].tolist()
    return ((source.image(row), source.classes[source.labels[row]]) for row in rows)


def main() -> None:
    """Print one line per loader, then one per training."""
    parser = argparse.ArgumentParser(description="Reading images here and with torchvision")
    parser.add_argument("--data", type=Path, help="parquet file or other set to take images from")
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="sizes of images")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that read")
    parser.add_argument("--noise", type=float, default=0, help="noise of photos of 12 megapixels, of 255")
    parser.add_argument("--repeats", type=int, default=3, help="timed epochs of each loader")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--no-training", action="store_true", help="leave out the share of waiting")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tasks = [task for task in TASKS if task.name in arguments.tasks]

    setting = {
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "data": arguments.data.name if arguments.data else "scikit-learn's sample photos",
        "repeats": arguments.repeats,
        "noise": arguments.noise,
    }
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    rows: list[dict[str, Any]] = []
    trainings: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="loader-") as name:
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ["HF_DATASETS_CACHE"] = str(Path(name, "cache"))
        files = {}
        for task in tasks:
            folder = Path(name, task.name)
            folder.mkdir()
            files[task] = write(folder, images_of(arguments.data, task, noise=arguments.noise))
        print(f"{'images':10} {'workers':>7}  {'loader':20} {'per second':>10} {'ratio':>6}")
        for task in tasks:
            for workers in arguments.workers:
                for row in measure(task, files[task], workers, arguments.repeats):
                    rows.append(row)
                    line = "{task:10} {workers:7}  {loader:20} {images_per_second:10.0f} {ratio:6.2f}"
                    print(line.format(**row), flush=True)
        if not arguments.no_training:
            for task in tasks:
                for workers in arguments.workers:
                    trainings.append(waiting(task, files[task]["folder"], Path(name), workers))
            print(f"\n{'training':28} {'batch':>6} {'workers':>7} {'waiting':>8} {'per second':>10}")
            line = "{model:28} {batch:6} {workers:7} {waiting:8.1%} {images_per_second:10.0f}"
            for row in trainings:
                print(line.format(**row))
    if arguments.json:
        content = {**setting, "loaders": rows, "trainings": trainings}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
