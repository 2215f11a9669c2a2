"""Evaluate what tells images of unknown things: the bundled weights, and images of other classes.

    python benchmarks/unknown_images.py --data DIR --cache DIR/unknown
    python benchmarks/unknown_images.py --data DIR --cache DIR/unknown --store WEIGHTS.safetensors

DIR holds tiny-imagenet-200/ and cifar10/ as parquet files. The known images are the 1,000 of the val split
that show one of the 20 classes. The unknown ones are the 9,000 of the other 180 classes, near ones since many
are animals too, and the 10,000 of CIFAR-10's test set, which are enlarged from 32 pixels. Three of CIFAR-10's
classes (automobile, cat, dog) and a few of the 180 (Persian cat, Egyptian cat) are close to known ones; they
count as unknown here.

Every statistic is fitted on the 500 training images that the bundled weights were not trained on, none on an
unknown image. The signals were compared on every second of the 180 classes; the others are reported apart.
Outputs of a set are kept in the cache, so the same command goes on where it was stopped, and figures are
stored in results/unknown_images/. Allow 20 minutes of a core.

`--store` writes thresholds and class means into a weights file instead, as a report does for a run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from conformer_vision.data.images import open_image
from conformer_vision.files import atomic_path
from conformer_vision.inference.fit import fit_thresholds
from conformer_vision.inference.trained_model import TrainedModel
from conformer_vision.models.variants import SHIPPED
from conformer_vision.preprocessing import read_through
from conformer_vision.runtime.base import Outputs
from conformer_vision.weights import Calibrated, save_calibration
from learning import RESULTS, provenance
from unknown_signals import Fitted, Seen, scores_of

CLASSES = Path(__file__).with_name("tiny_imagenet_20.txt")
STORED = RESULTS / "unknown_images" / "bundled.json"
BATCH = 64
DRAWS = 1000
"""Resamples of the images for an interval."""
Scores = NDArray[np.float64]


# ---- the images ------------------------------------------------------------------------------------


def held_out(labels: Sequence[int]) -> list[int]:
    """Return the rows of the 20 classes' training images that the bundled weights were not trained on.

    They were drawn before splits went by the hash of a name: five percent of every class, with seed 0.
    """
    array, rng, rows = np.asarray(labels), np.random.default_rng(0), []
    for label in np.unique(array):
        members = rng.permutation(np.flatnonzero(array == label))
        rows += members[: round(0.05 * len(members))].tolist()
    return sorted(rows)


def open_sets(folder: Path) -> dict[str, Callable[[], datasets.Dataset]]:
    """Return how to open the images of each set, in the order in which they are needed."""
    names = CLASSES.read_text(encoding="utf-8").splitlines()
    tiny = folder / "tiny-imagenet-200"

    def part(files: str, *, known: bool) -> datasets.Dataset:
        data = read(tiny, files)
        own = data.features["label"].names
        numbers = {own.index(name): place for place, name in enumerate(names)}
        rows = [row for row, label in enumerate(data["label"]) if (label in numbers) == known]
        data = data.select(rows)
        if not known:
            return data
        labels = [numbers[label] for label in data["label"]]
        return data.remove_columns("label").add_column("label", labels)

    def fitted() -> datasets.Dataset:
        data = part("train-*.parquet", known=True)
        return data.select(held_out(data["label"]))

    return {
        "held-out": fitted,
        "known": lambda: part("val*.parquet", known=True),
        "others": lambda: part("val*.parquet", known=False),
        "cifar10": lambda: read(folder / "cifar10", "test*.parquet"),
    }


def read(folder: Path, files: str) -> datasets.Dataset:
    """Read parquet files; their images stay encoded."""
    data = datasets.Dataset.from_parquet(sorted(map(str, folder.glob(files))), keep_in_memory=True)
    return data.cast_column("image", datasets.Image(decode=False))


def look(trained: TrainedModel, name: str, opened: Callable[[], datasets.Dataset], cache: Path) -> Seen:
    """Return what the network gives for a set, computed once."""
    path = cache / f"{name}.safetensors"
    if not path.exists():
        data = opened()
        batches = [infer(trained, data[start : start + BATCH]) for start in range(0, len(data), BATCH)]
        columns = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
        with atomic_path(path) as temporary:
            save_file(columns, temporary)
        print(f"{name}: {len(data):,} images", flush=True)
    columns = load_file(path)
    features, labels = columns.pop("features").double(), columns.pop("labels")
    return Seen({head: values.double() for head, values in columns.items()}, features, labels)


def infer(trained: TrainedModel, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
    """Return logits and features of a batch of rows."""
    images = [
        read_through(trained.transform, partial(open_image, image["bytes"], name="image"))
        for image in batch["image"]
    ]
    found = trained.outputs(np.stack(images))
    assert found.features is not None
    arrays = {**found.logits, "features": found.features}
    return {
        **{key: torch.from_numpy(each) for key, each in arrays.items()},
        "labels": torch.tensor(batch["label"]),
    }


# ---- the figures -----------------------------------------------------------------------------------


def auroc(known: Scores, unknown: Scores) -> float:
    """Probability that a known image comes before an unknown one."""
    truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
    return float(roc_auc_score(truth, np.r_[known, unknown]))


def fpr95(known: Scores, unknown: Scores) -> float:
    """Share of unknown images above the threshold that 95 % of the known ones are above."""
    return float((unknown >= np.quantile(known, 0.05, method="lower")).mean())


def figures(scores: dict[str, Scores], base: dict[str, Scores], others: dict[str, Tensor]) -> dict[str, Any]:
    """Return AUROC, its lead over the baseline, FPR95 and AUPR, with 95 % intervals, for each unknown set."""
    found: dict[str, Any] = {}
    for name, (label, rows) in {
        "others": ("others", others["all"]),
        "others, chosen on": ("others", others["even"]),
        "others, not chosen on": ("others", others["odd"]),
        "cifar10": ("cifar10", None),
    }.items():
        kept = slice(None) if rows is None else rows.numpy()
        known, unknown = scores["known"], scores[label][kept]
        first = base["known"], base[label][kept]
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(DRAWS):
            ours, theirs = (rng.integers(0, len(each), len(each)) for each in (known, unknown))
            pair, before = (known[ours], unknown[theirs]), (first[0][ours], first[1][theirs])
            area = quick_auroc(*pair)
            drawn.append((area, area - quick_auroc(*before), fpr95(*pair)))
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0).tolist()
        values = (auroc(known, unknown), auroc(known, unknown) - auroc(*first), fpr95(known, unknown))
        truth = np.r_[np.ones(len(known)), np.zeros(len(unknown))]
        found[name] = {
            key: [round(value, 4) for value in (values[place], low[place], high[place])]
            for place, key in enumerate(("auroc", "lead", "fpr95"))
        } | {"aupr": round(float(average_precision_score(truth, np.r_[known, unknown])), 4)}
    threshold = np.sort(scores["held-out"])[int(0.05 * (len(scores["held-out"]) + 1)) - 1]
    found["answered"] = {label: float((values >= threshold).mean()) for label, values in scores.items()}
    return found


def quick_auroc(known: Scores, unknown: Scores) -> float:
    """AUROC as the share of pairs in the right order; ties count half."""
    ordered = np.sort(unknown)
    below, upto = (np.searchsorted(ordered, known, side=side) for side in ("left", "right"))
    return float((below + upto).mean() / (2 * len(unknown)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Evaluate what tells images of unknown things")
    parser.add_argument("--data", type=Path, required=True, help="folder of tiny-imagenet-200 and cifar10")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the outputs of the network")
    parser.add_argument("--store", type=Path, help="weights file to write the thresholds into")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    trained = TrainedModel(SHIPPED, device="cpu")
    opened = open_sets(options.data)
    if options.store is not None:
        store(trained, look(trained, "held-out", opened["held-out"], options.cache), options.store)
        return
    sets = {name: look(trained, name, each, options.cache) for name, each in opened.items()}
    whole: Any = trained.runtime.network
    heads = {
        name: (head.weight.detach().double(), head.bias.detach().double())
        for name, head in (("conv", whole.conv_head), ("trans", whole.trans_head))
    }
    labels = sets["others"].labels
    places = torch.searchsorted(labels.unique(), labels)
    others = {"all": places >= 0, "even": places % 2 == 0, "odd": places % 2 == 1}
    rows: dict[str, Any] = {}
    base: dict[str, Scores] = {}
    for name, scores in scores_of(sets, Fitted(sets["held-out"]), heads):
        base = base or scores
        rows[name] = figures(scores, base, others)
        shown = (rows[name][each]["auroc"][0] for each in ("others", "others, not chosen on", "cifar10"))
        print(f"{name:75}", *(f"{value:6.1%}" for value in shown), flush=True)
    record = {"images": {name: len(each.labels) for name, each in sets.items()}, **provenance()}
    lines = [f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    with atomic_path(STORED) as temporary:
        text = json.dumps(record, indent=1)[:-2] + ',\n "signals": {\n' + ",\n".join(lines) + "\n }\n}\n"
        temporary.write_text(text, encoding="utf-8")


def store(trained: TrainedModel, seen: Seen, path: Path) -> None:
    """Write thresholds and class means into a weights file; its weights stay as they are."""
    temperature = trained.spec.temperature
    logits = {head: values.numpy() for head, values in seen.logits.items()}
    outputs = Outputs(logits, seen.features.numpy())
    fitted = fit_thresholds(outputs, seen.labels.numpy(), spec=trained.spec, temperature=temperature)
    save_calibration(path, Calibrated(temperature, fitted.thresholds, fitted.class_means))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
