"""Write some photos that installed packages bring to a folder, to try `conformer-vision predict` on.

For instance: python examples/write_photos.py photos
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

PHOTOS = {
    "cat": data.chelsea,
    "cup_of_coffee": data.coffee,
    "astronaut": data.astronaut,
    "temple": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
}
"""What they show; scikit-image has the first three, scikit-learn the others."""


def main() -> None:
    """Write every photo as a JPEG named after what it shows."""
    parser = argparse.ArgumentParser(description="Write photos that scikit-image and scikit-learn bring.")
    parser.add_argument("folder", type=Path, help="where to write them")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, load in PHOTOS.items():
        Image.fromarray(load()).save(folder / f"{name}.jpg", quality=95)
    print(f"{len(PHOTOS)} photos in {folder}")


if __name__ == "__main__":
    main()
