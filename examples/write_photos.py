"""Write two photos of things that the bundled weights know to a folder, to try `conformer-vision predict` on.

For instance: python examples/write_photos.py photos
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from skimage import data

PHOTOS = {
    "tabby": data.chelsea,
    "espresso": data.coffee,
}
"""What they show, and how scikit-image loads them."""


def main() -> None:
    """Write every photo as a JPEG named after what it shows."""
    parser = argparse.ArgumentParser(description="Write photos that scikit-image brings.")
    parser.add_argument("folder", type=Path, help="where to write them")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, load in PHOTOS.items():
        Image.fromarray(load()).save(folder / f"{name}.jpg", quality=95)
    print(f"{len(PHOTOS)} photos in {folder}")


if __name__ == "__main__":
    main()
