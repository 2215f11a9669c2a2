"""Check that a wheel holds the package with its data files and nothing else.

python tests/check_wheel.py dist/conformer_vision-0.1.0-py3-none-any.whl
"""

import sys
import zipfile
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
DATA = (
    "py.typed",
    "recipes/quick.yaml",
    "report/report.html.j2",
    "check/page.html.j2",
    "pages/base.html.j2",
    "serve/page/index.html",
    "serve/page/script.js",
)


def main(wheel: str) -> None:
    """Compare the wheel with the sources; end with a message if they differ."""
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    needed = {f"conformer_vision/{name}" for name in DATA}
    if missing := sorted((sources | needed) - inside):
        sys.exit(f"{wheel} lacks {', '.join(missing)}")
    if extra := sorted(inside - sources):
        sys.exit(f"{wheel} holds {', '.join(extra)} beside the package")
    if not any(name.endswith(".safetensors") for name in inside):
        sys.exit(f"{wheel} lacks the bundled weights")
    print(f"{wheel}: {len(inside)} files, {Path(wheel).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
