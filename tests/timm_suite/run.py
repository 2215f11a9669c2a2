"""Run timm's own tests/test_models.py, of the timm release that is installed, over every Conformer model.

The tests come in timm's source distribution, which pip downloads once into a cache folder:

    python tests/timm_suite/run.py [pytest options]
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".cache"


def fetch_suite() -> Path:
    """Give the folder of timm's source distribution, downloading it where it is not there yet."""
    release = f"timm-{version('timm')}"
    folder = CACHE / release
    if not (folder / "tests" / "test_models.py").exists():
        CACHE.mkdir(exist_ok=True)
        requirement = release.replace("-", "==")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        subprocess.run([*command, "--dest", str(CACHE), requirement], check=True)
        with tarfile.open(CACHE / f"{release}.tar.gz") as archive:
            members = [member for member in archive if member.name.startswith(f"{release}/tests/")]
            archive.extractall(
                CACHE, members=members, filter="data"
            )  # not timm itself: the installed one is tested
    return folder


def main() -> int:
    """Run the suite; the exit status is pytest's."""
    folder = fetch_suite()
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "TIMEOUT": "600"}
    options = ["-p", "only_conformer", "-q", "-W", "ignore", "--timeout=600", "-o", "addopts="]
    suite = folder / "tests" / "test_models.py"
    command = [sys.executable, "-m", "pytest", *options, "--rootdir", str(folder), str(suite), *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(main())
