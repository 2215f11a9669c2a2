"""A folder of localisations: one COCO file, and a PNG image of every mask."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from conformer_vision.errors import UserError, reason_of
from conformer_vision.explain.localization import Localization, Region
from conformer_vision.files import atomic_path, make_folder
from conformer_vision.spec import ModelSpec

COCO_FILE = "localization.json"
MASKS_FOLDER = "masks"
_LONGEST = 24
"""Characters of an image's or a class's name in the name of a mask, which has at most 255 bytes."""


def check_new(folder: str | Path) -> None:
    """Check that a folder for `write_folder` does not exist yet, or is empty.

    Raises:
        UserError: It holds something, or is a file.
    """
    try:
        empty = not any(Path(folder).iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {reason_of(error)}") from error
    if not empty:
        raise UserError(f"{folder} is not empty; give a new folder")


def write_folder(
    found: Sequence[Localization], folder: Path, spec: ModelSpec, *, method: str, threshold: float
) -> Path:
    """Write masks and, when they are complete, the COCO file; return its path.

    Images are named in it by their path from the folder that holds them all. Each annotation names the file
    of its mask as ``mask``, and has the probability of its class as ``score``. Categories have the numbers
    of the model's outputs.

    Args:
        found: The localisations; those with an error are left out.
        folder: An empty folder.
        spec: Specification of the model, which names the classes.
        method: The method that gave the heat maps.
        threshold: Share of the strongest evidence at which they were cut.

    Raises:
        UserError: The folder cannot be written.
    """
    found = [each for each in found if each.error is None]
    names = _names_in_common_folder([each.name for each in found])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (each, name) in enumerate(zip(found, names, strict=True), start=1):
        images.append({"id": number, "file_name": name, "width": each.width, "height": each.height})
        for region in each.regions:
            mask = _write_mask(region, folder, name=_mask_name(len(annotations) + 1, name, region.label))
            annotation = {"id": len(annotations) + 1, "image_id": number, **_annotation(region)}
            annotations.append({**annotation, "mask": mask})
    about = {"description": "Found by conformer-vision", "model": spec.model}
    content = {
        "info": {**about, "method": method, "threshold": threshold},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": label} for number, label in enumerate(spec.labels)],
    }
    path = folder / COCO_FILE
    with atomic_path(path) as temporary:  # ASCII: the names of files need not be UTF-8
        temporary.write_text(json.dumps(content) + "\n", encoding="ascii")
    return path


def _annotation(region: Region) -> dict[str, Any]:
    return {
        "category_id": region.number,
        "bbox": list(region.box),
        "area": region.area,
        "segmentation": region.mask.to_coco(),
        "iscrowd": 0,
        "score": region.score,
    }


def _names_in_common_folder(names: Sequence[str]) -> list[str]:
    """Return paths from the folder that holds all images; names that are no files stay as they are."""
    paths = {name: os.path.abspath(name) for name in names if os.path.lexists(name)}
    if not paths:
        return list(names)
    folder = os.path.commonpath([os.path.dirname(path) for path in paths.values()])
    return [Path(os.path.relpath(paths[n], folder)).as_posix() if n in paths else n for n in names]


def _mask_name(number: int, image: str, label: str) -> str:
    """Return a name that is unique by its number, and safe whatever the image and the class are called."""
    shown = _safe(Path(image).stem)[-_LONGEST:], _safe(label)[:_LONGEST]
    return f"{number:06}-{'-'.join(shown)}.png"


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text)


def _write_mask(region: Region, folder: Path, *, name: str) -> str:
    path = make_folder(folder / MASKS_FOLDER) / name
    with atomic_path(path) as temporary:
        Image.fromarray(region.mask.mask()).save(temporary)
    return f"{MASKS_FOLDER}/{name}"
