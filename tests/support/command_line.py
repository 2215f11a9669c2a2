"""The command line in this process and in its own, for the tests of it."""

import contextlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from conformer_vision.cli import main

MODEL = ["--model=conformer_nano_patch8_64", "--input_size=32", "--model_kwargs.depths=[2,1,2]"]
MODEL.append("--model_kwargs.zero_init_last=false")  # after two steps it would hide what bottlenecks compute
TINY = [*MODEL, "--batch_size=8", "--max_steps=2", "--workers=0", "--device=cpu", "--progress=plain"]
TINY.append("--report=false")  # takes longer than two steps


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    status: int
    out: str
    err: str


def run(*arguments: object) -> Done:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


COMMAND = [sys.executable, "-m", "conformer_vision"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def spawn(*arguments: object) -> Done:
    """The command in a process of its own."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=100
    )
    return Done(done.returncode, done.stdout, done.stderr)


def start(*arguments: object, output: Path, **environment: str) -> ForkServerProcess:
    """The command in a process of its own that has the libraries already; it writes to the file `output`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conformer_vision.training.run"])
    process = context.Process(target=_command, args=([str(a) for a in arguments], output, environment))
    process.start()
    return process


def _command(arguments: list[str], output: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    tempfile.tempdir = None  # which the fork server may have looked up
    rank_zero_only.rank = int(environment.get("RANK", 0))  # which lightning reads when it is imported
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for its own processes; it was made by a fork server
    with output.open("w", buffering=1) as file:
        os.dup2(file.fileno(), 1)  # for processes that this one starts
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        sys.exit(main(arguments))


def class_folders(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (20 * number % 255, 20, 30)).save(root / name / f"{number}.png")
    return root


def one_line(done: Done) -> str:
    """The error of a command that ended with exit status 2."""
    assert done.status == 2, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    return done.err
