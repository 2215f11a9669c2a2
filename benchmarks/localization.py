"""Evaluate heat maps on the set of `localization_set`: the table of trained networks, methods and metrics.

    python benchmarks/localization_set.py DIR/tiny-imagenet-200 DIR/localization --size 96
    python benchmarks/learning.py --run localization --data DIR
    python benchmarks/localization.py --data DIR/localization --runs runs/learning/localization--*

The second command trains the networks (table `localization` of experiments.yaml), the third evaluates every
method that a network has. Each row is stored in results/ when it is complete, so the same command goes on
where it was stopped; rows that are stored are printed as they are. Allow about an hour of a core per network.

All metrics are for known classes: the map of a class that is in the image is compared with its objects. A
class in an image is one case, so an image with two objects counts twice. Images are shown whole.

- *box*: GT-known localisation accuracy. The box of the largest part, at the threshold with the largest mean
  IoU on the val split, has an IoU of at least 0.5 with the true one.
- *MaxBoxAccV2* (Choe et al. 2020): the best of all parts, thresholds chosen on the test images themselves.
- *pointing*: the strongest evidence lies on the object; *of two*: in images with two objects, where a map
  that is the same for every class points at one of them at most.
- *mask*: mean IoU of the largest part, at the threshold of *box*.
- *deletion*, *insertion* (Petsiuk et al. 2018): areas under the curve of the class's fused probability.
- *passes*: time for the map of one class in forward passes of the same batch.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from conformer_vision.errors import UserError
from conformer_vision.explain import METHODS, Explainer, heat_maps
from conformer_vision.explain.coco import PixelBox, RunLengths
from conformer_vision.explain.explainer import placed, relative
from conformer_vision.explain.localization import THRESHOLDS, ious_at_thresholds, largest_part
from conformer_vision.files import atomic_path
from localization_metrics import (
    best_ious,
    mask_iou,
    max_box_acc_v2,
    points_into,
    removal_curves,
    times_as_long,
)
from stored import RESULTS, provenance
from tables import heat_map_table

SLOW = {"occlusion": 50}
"""Method -> images of a split that it is evaluated on, spread over it evenly: a row says how many."""
CURVE_IMAGES = 40
"""Images that deletion and insertion are evaluated on, spread evenly too."""
BATCH = 16
_TIMED_BATCH = 8


@dataclass(frozen=True)
class Labelled:
    """An image and the objects in it, the main one first."""

    path: Path
    labels: list[str]
    """Classes; no class is twice in an image."""
    boxes: list[PixelBox]
    masks: list[RunLengths]


def read_split(folder: Path, split: str) -> list[Labelled]:
    """Read a split of a set that `localization_set` wrote."""
    content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {
        image["id"]: Labelled(folder / split / image["file_name"], [], [], []) for image in content["images"]
    }
    for annotation in content["annotations"]:
        labelled = found[annotation["image_id"]]
        labelled.labels.append(names[annotation["category_id"]])
        labelled.boxes.append(PixelBox(*annotation["bbox"]))
        segmentation = annotation["segmentation"]
        labelled.masks.append(RunLengths(*segmentation["size"], segmentation["counts"]))
    return list(found.values())


def spread(images: Sequence[Labelled], most: int | None) -> list[Labelled]:
    """Take at most some of the images, evenly spread: they are sorted by class."""
    if most is None or len(images) <= most:
        return list(images)
    return [images[place * len(images) // most] for place in range(most)]


@dataclass(frozen=True)
class Seen:
    """One case: a class in an image, and the evidence for it."""

    image: Labelled
    place: int
    """Of the class in the image."""
    evidence: NDArray[np.float32]
    """(H, W), at the size of the image."""
    batch: Tensor
    """(1, C, H, W): the image as the network was shown it."""
    map: Tensor
    """(H, W): the evidence at the size of `batch`."""
    number: int
    """Of the class among the outputs."""


def seen(explainer: Explainer, images: Sequence[Labelled], method: str) -> Iterator[Seen]:
    """Yield every class of every image with its evidence, images with as many classes in one batch."""
    for count in sorted({len(image.labels) for image in images}):
        same = [image for image in images if len(image.labels) == count]
        for start in range(0, len(same), BATCH):
            part = same[start : start + BATCH]
            opened = [Image.open(image.path).convert("RGB") for image in part]
            shown = [explainer.prepare(image) for image in opened]
            batch = torch.cat([each for each, _ in shown])
            numbers = torch.tensor([explainer.class_numbers(image.labels) for image in part])
            maps = heat_maps(explainer.model, batch, numbers, method=method).maps
            maps = relative(maps.float().cpu(), signed=METHODS[method].signed)
            for row, image in enumerate(part):
                for place in range(count):
                    own = maps[row, place]
                    evidence = placed(own, shown[row][1], opened[row].size)
                    number = int(numbers[row, place])
                    yield Seen(image, place, evidence, batch[row : row + 1], own, number)


def fitted_threshold(explainer: Explainer, images: Sequence[Labelled], method: str) -> tuple[float, float]:
    """Return the threshold with the largest mean IoU of the largest part, and that mean."""
    rows = [
        ious_at_thresholds(case.evidence, [case.image.boxes[case.place]])
        for case in seen(explainer, images, method)
    ]
    means = np.mean(rows, axis=0)
    return THRESHOLDS[int(means.argmax())], float(means.max())


def evaluate_method(
    explainer: Explainer,
    method: str,
    val: Sequence[Labelled],
    test: Sequence[Labelled],
    *,
    curve_images: int = CURVE_IMAGES,
) -> dict[str, Any]:
    """Evaluate a method on a network.

    Args:
        explainer: The network; shows it whole images.
        method: A name of `METHODS`.
        val: Images that the threshold is fitted on.
        test: Images that everything else is evaluated on.
        curve_images: Images of them for deletion and insertion.

    Raises:
        UserError: The network has no such map.
    """
    val, test = (spread(images, SLOW.get(method)) for images in (val, test))
    threshold, val_iou = fitted_threshold(explainer, val, method)
    curved = {image.path for image in spread(test, curve_images)}
    rows: dict[str, list[Any]] = {name: [] for name in ("ious", "hits", "points", "two", "masks", "curves")}
    for case in seen(explainer, test, method):
        box, mask = case.image.boxes[case.place], case.image.masks[case.place].mask()
        part = largest_part(case.evidence, threshold)
        rows["ious"].append(best_ious(case.evidence, [box]))
        rows["hits"].append(part is not None and part.box.iou(box) >= 0.5)
        rows["masks"].append(0.0 if part is None else mask_iou(part.mask, mask))
        rows["points"].append(points_into(case.evidence, mask))
        if len(case.image.labels) > 1:
            rows["two"].append(rows["points"][-1])
        if case.image.path in curved:
            rows["curves"].append(removal_curves(_score(explainer, case.number), case.batch[0], case.map))
    deletion, insertion = np.mean(rows["curves"], axis=0).tolist()
    return {
        "images": len(test),
        "cases": len(rows["hits"]),
        "val_images": len(val),
        "threshold": threshold,
        "val_mean_iou": val_iou,
        "box": float(np.mean(rows["hits"])),
        "max_box_acc_v2": max_box_acc_v2(np.array(rows["ious"])),
        "pointing": float(np.mean(rows["points"])),
        "pointing_two": float(np.mean(rows["two"])) if rows["two"] else None,
        "mask": float(np.mean(rows["masks"])),
        "curve_images": len(curved),
        "deletion": deletion,
        "insertion": insertion,
        "passes": passes(explainer, test, method),
    }


def _score(explainer: Explainer, number: int) -> Any:
    return lambda images: explainer.model(images).softmax(1)[:, number]


def passes(explainer: Explainer, images: Sequence[Labelled], method: str) -> float:
    """Return the time of a heat map of one class in forward passes."""
    part = images[: 1 if method in SLOW else _TIMED_BATCH]
    batch = torch.cat([explainer.prepare(Image.open(image.path).convert("RGB"))[0] for image in part])
    numbers = torch.tensor([explainer.class_numbers(image.labels[:1]) for image in part])

    @torch.no_grad()
    def forward() -> None:
        explainer.model(batch)

    return times_as_long(lambda: heat_maps(explainer.model, batch, numbers, method=method), forward)


@torch.no_grad()
def top1(explainer: Explainer, images: Sequence[Labelled]) -> float:
    """Return the accuracy of the prediction for the main objects."""
    right = 0
    for image in images:
        batch, _ = explainer.prepare(Image.open(image.path).convert("RGB"))
        (number,) = explainer.class_numbers(image.labels[:1])
        right += int(explainer.model(batch).argmax(1).item()) == number
    return right / len(images)


def evaluate_run(
    run: Path, data: Path, *, methods: Sequence[str], most: int | None = None, results: Path = RESULTS
) -> list[dict[str, Any]]:
    """Evaluate what is left of a run's rows, store each, and return all.

    Args:
        run: A run folder, weights, or the name of published weights; its last part names the rows.
        data: Folder of the set.
        methods: Names of `METHODS`; those that the network has not are left out.
        most: Images of val and of test, evenly spread; all by default.
        results: Where the rows are stored.
    """
    rows = []
    explainer: Explainer | None = None
    accuracy = 0.0
    for method in methods:
        path = results / f"localization-methods--{_slug(run.name)}--{_slug(method)}.json"
        if not path.is_file():
            val, test = (spread(read_split(data, split), most) for split in ("val", "test"))
            if explainer is None:
                explainer = Explainer(run, whole=True)
                accuracy = top1(explainer, test)
            try:
                values = evaluate_method(explainer, method, val, test)
            except UserError as error:
                print(f"{run.name}, {method}: {error}")
                continue
            about = json.loads((data / "test.json").read_text(encoding="utf-8"))["info"]
            row = {
                "table": "localization-methods",
                "name": f"{run.name}, {method}",
                "seed": 0,
                "run": run.name,
                "method": method,
                "model": explainer.spec.model,
                "model_kwargs": explainer.spec.model_kwargs,
                "input_size": list(explainer.spec.input_size),
                "parameters": sum(parameter.numel() for parameter in explainer.model.parameters()),
                "set": about,
                "top1": {"fused": accuracy},
                **values,
                **provenance(),
            }
            results.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        rows.append(json.loads(path.read_text(encoding="utf-8")))
    return rows


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("++", "-plus-plus")).strip("-")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Evaluate heat maps on images with objects at known places")
    parser.add_argument("--data", type=Path, required=True, help="folder that localization_set.py wrote")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders or weights")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--most", type=int, help="images of val and of test, for a trial")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows are stored")
    options = parser.parse_args()
    rows = []
    for run in options.runs:
        rows += evaluate_run(
            run, options.data, methods=options.methods, most=options.most, results=options.results
        )
    print(heat_map_table(rows))


if __name__ == "__main__":
    main()
