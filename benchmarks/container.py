"""Check docker/Dockerfile step by step where no Docker daemon is at hand.

python benchmarks/container.py MODEL.onnx PHOTO.jpg

It runs the file's own steps in an empty folder: COPY copies from the repository, RUN runs its command with
the folder's paths, and the entry point serves MODEL. Then the health check has to pass, the photo has to be
answered, and SIGTERM has to end the server with status 0 in time. What a container adds, its user and its
file system, is not checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
START = 60
"""Seconds until the server has to be ready."""


class Step(NamedTuple):
    """One instruction of a Dockerfile."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of an instruction, which may be a JSON list."""
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


def read_steps(path: Path = DOCKERFILE) -> list[Step]:
    """Read the instructions of a Dockerfile without line continuations."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Step(*line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def command_of(steps: list[Step]) -> list[str]:
    """Return what a container runs: entry point and command."""
    last = {step.name: step.words for step in steps if step.name in ("ENTRYPOINT", "CMD")}
    return [*last["ENTRYPOINT"], *last["CMD"]]


def health_of(steps: list[Step]) -> list[str]:
    """Return the command of the health check."""
    (step,) = (step for step in steps if step.name == "HEALTHCHECK")
    return json.loads(step.text.partition(" CMD ")[2])


def build(steps: list[Step], root: Path) -> None:
    """Run COPY and RUN of the first stage below a folder."""
    for step in steps[: [step.name for step in steps].index("FROM", 1)]:
        if step.name == "COPY":
            *sources, target = step.words
            for source in sources:
                place = root / target / (Path(source).name if target.endswith("/") else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, place)
        elif step.name == "RUN":
            command = step.text.replace("/venv", str(root / "venv")).replace(
                "python -m venv", f"{sys.executable} -m venv"
            )
            print(f"$ {step.text}", flush=True)
            subprocess.run(command, shell=True, check=True, cwd=root, env=environment(root))


def environment(root: Path) -> dict[str, str]:
    """Return the environment of a step: nothing of this repository is in it."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return kept | {"PATH": f"{root / 'venv' / 'bin'}:{os.environ['PATH']}"}


def serve(steps: list[Step], root: Path, model: Path, photo: Path) -> None:
    """Start the command, check its health, ask it once, and end it."""
    command = [str(model) if word == "/model/model.onnx" else word for word in command_of(steps)]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=root, env=environment(root)) as process:
        try:
            while subprocess.run(health_of(steps), env=environment(root), capture_output=True).returncode:
                assert process.poll() is None, "the server ended"
                assert time.perf_counter() - began < START, "the server is not healthy in time"
            print(f"healthy after {time.perf_counter() - began:.1f} s")
            address = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
            while True:
                try:
                    urllib.request.urlopen(f"{address}/ready", timeout=5).close()
                    break
                except OSError:
                    assert time.perf_counter() - began < START, "the server is not ready in time"
                    time.sleep(0.05)
            print(f"ready after {time.perf_counter() - began:.1f} s")
            headers = {"Content-Type": "application/octet-stream"}
            request = urllib.request.Request(f"{address}/predict", photo.read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                print(json.dumps(json.load(answer)["predictions"][0], ensure_ascii=False))
        finally:
            process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=float(command[command.index("--drain_seconds") + 1]) + 5)
    assert status == 0, f"SIGTERM ended the server with status {status}"


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("photo", type=Path)
    options = parser.parse_args()
    steps = read_steps()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        build(steps, root)
        venv = root / "venv"
        size = sum(
            path.lstat().st_size for path in venv.rglob("*") if path.is_file() and not path.is_symlink()
        )
        print(f"environment: {size / 1e6:.0f} MB")
        assert not [*venv.glob("lib/*/site-packages/torch")], "PyTorch is in it"
        serve(steps, root, options.model.resolve(), options.photo.resolve())
    print("every step works")


if __name__ == "__main__":
    main()
