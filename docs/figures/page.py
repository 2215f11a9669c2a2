"""Photograph the page of the server, on a desktop and on a phone: page.jpg and page_phone.jpg.

python docs/figures/page.py [FOLDER]

It needs Chromium, playwright and scikit-image, which brings the photos. The bundled weights answer.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import skimage.data
from PIL import Image
from playwright.sync_api import sync_playwright

SHOTS = {
    "page": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "page_phone": {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark", "has_touch": True},
}


@contextmanager
def server() -> Iterator[str]:
    """Serve the bundled weights; gives the address."""
    command = [sys.executable, "-m", "conformer_vision", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def main(folder: Path) -> None:
    """Write both images: into the first photo the page looks on the desktop."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("Without Chromium, page.jpg and page_phone.jpg stay as they are.")
        return
    with TemporaryDirectory() as temporary, server() as address, sync_playwright() as playwright:
        photos = []
        for name in ("chelsea", "coffee"):
            photos.append(Path(temporary, f"{name}.png"))
            Image.fromarray(getattr(skimage.data, name)()).save(photos[-1])
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, options in SHOTS.items():
            page = browser.new_context(**options).new_page()
            page.goto(address)
            page.set_input_files("#files", photos[: 1 if name == "page" else 2])
            page.get_by_text("answered.").wait_for()
            if name == "page":
                page.get_by_role("button", name="Where does it look?").click()
                page.get_by_role("slider").fill("9")
            page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=80, full_page=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
