"""Time `predict` over JPEG photos in every runtime, beside OpenVINO alone on decoded images.

The bare loop has the images as tensors and does nothing but infer, in the best of some batch sizes.
Everything else reads the files, infers and builds the answers, as the command does. All take turns in random
order, so that whatever else slows the machine slows all. Reported are medians: images per second, and the
ratio of the time to the bare loop's (1: reading and answers cost nothing). What a conversion takes is
reported once.

    python benchmarks/predicting.py                                    # S with random weights, 1,000 photos
    python benchmarks/predicting.py --model runs/photos --photos photos --images 300 --json predicting.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from conformer_vision import Predictor
from conformer_vision.data import find_images
from conformer_vision.inference.conversion.convert import ConvertedRuntime
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.preprocessing import read_through
from conformer_vision.runs import BEST_WEIGHTS, CONFIG_FILE, mark_config
from conformer_vision.runtime.inputs import named_images
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import save_model

EDGE = 320
"""Pixels of the photos that are cut out of scikit-image's."""
RUNTIMES = ("torch", "onnx", "openvino", "auto")
BATCHES = (1, 8, 32)
"""Batch sizes of the bare loop."""


@dataclass(frozen=True)
class Row:
    """One way to compute all images."""

    name: str
    images_per_second: float
    ratio: float
    """Its time over that of the bare loop; medians of the rounds."""


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write crops of scikit-image's photos as JPEG files."""
    from skimage import data

    arrays = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    photos = [Image.fromarray(array) for array in arrays]
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photo = photos[number % len(photos)]
        piece = int(rng.integers(150, min(photo.size)))
        left, top = (int(rng.integers(edge - piece + 1)) for edge in photo.size)
        crop = photo.crop((left, top, left + piece, top + piece)).resize((EDGE, EDGE))
        crop.save(path, quality=90)
    return paths


def write_run(folder: Path, name: str) -> Path:
    """Write a run folder with random weights of a model of timm."""
    folder.mkdir()
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=1000)
    size = model.pretrained_cfg["input_size"]
    save_model(model, ModelSpec(name, {}, tuple(map(str, range(1000))), tuple(size)), folder / BEST_WEIGHTS)
    (folder / CONFIG_FILE).write_text(mark_config(""))
    return folder


def read_all(trained: TrainedModel, files: list[Path]) -> NDArray[np.float32]:
    """Read and prepare all images (N, C, H, W) in as many threads as `predict` uses."""
    reading = [partial(read_through, trained.transform, image.open) for image in named_images(files)]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return np.stack(list(pool.map(lambda read: read(), reading)))


def bare_loop(graph: Path, images: NDArray[np.float32], batch_size: int) -> Callable[[], None]:
    """Return OpenVINO's own loop over decoded images."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
    batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]

    def loop() -> None:
        for batch in batches:
            request.infer({0: batch})

    return loop


def seconds(work: Callable[[], object]) -> float:
    """Return the time that work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="conformer_small_patch16_224", help="run folder, or a name for random weights"
    )
    parser.add_argument("--photos", type=Path, help="folder of photos; scikit-image's by default")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=32, help="of predict")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.photos is None:
            (folder / "photos").mkdir()
            files = write_photos(folder / "photos", args.images)
        else:
            files = find_images(args.photos)[: args.images]
        run = Path(args.model) if os.path.isdir(args.model) else write_run(folder / "run", args.model)
        rows = compare(run, files, batch_size=args.batch_size, rounds=args.rounds)
    print(f"{'':22}{'images/s':>10}{'ratio':>8}")
    for row in rows:
        print(f"{row.name:22}{row.images_per_second:10.1f}{row.ratio:8.2f}")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


def compare(run: Path, files: list[Path], *, batch_size: int, rounds: int) -> list[Row]:
    """Time everything in turns; the bare loop is the first row."""
    predictors: dict[str, Predictor] = {}
    for runtime in RUNTIMES:
        for again in ("first", "again"):  # converted, then opened
            start = time.perf_counter()
            predictors[runtime] = Predictor(run, device="cpu", batch_size=batch_size, runtime=runtime)
            print(f"{runtime}, {again} opened in {time.perf_counter() - start:.1f} s")
    trained = TrainedModel(run, device="cpu")
    images = read_all(trained, files)
    (graph,) = (run / "conversions").glob("*-openvino-fp32-*/model.xml")
    works: dict[str, Callable[[], object]] = {
        **{f"bare, batch {size}": bare_loop(graph, images, size) for size in BATCHES},
        "reading alone": lambda: read_all(trained, files),
        **{name: lambda each=each: each(files, top_k=3) for name, each in predictors.items()},
    }
    for name, work in works.items():  # the first time is not counted
        print(f"{name}: {seconds(work):.1f} s the first time", flush=True)
    found: dict[str, list[float]] = {name: [] for name in works}
    order = list(works)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            found[name].append(seconds(works[name]))
    medians = {name: statistics.median(times) for name, times in found.items()}
    bare = min(median for name, median in medians.items() if name.startswith("bare"))
    converted = isinstance(predictors["auto"]._trained.runtime, ConvertedRuntime)
    titles = {"auto": "auto: a conversion" if converted else "auto: PyTorch"}
    return [
        Row(titles.get(name, name), len(files) / median, median / bare) for name, median in medians.items()
    ]


if __name__ == "__main__":
    main()
