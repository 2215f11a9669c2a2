"""The command line in this process and in its own, for the tests of it."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from conformer_vision.cli import end_at_sigterm, main
from conformer_vision.training import interrupt

NETWORK: dict[str, Any] = {
    "depths": [2, 1, 2],
    "channel_ratio": 0.5,
    "embed_dim": 32,
    "num_heads": 2,
    "stem_width": 16,
    "zero_init_last": False,  # after two steps it would hide what bottlenecks compute
}
"""Every kind of layer in 0.2 M parameters."""
MODEL = ["--model=conformer_nano_patch8_64", "--input_size=32"]
MODEL += [f"--model_kwargs.{name}={json.dumps(value)}" for name, value in NETWORK.items()]
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


# All tests of `start` in one of pytest-xdist's processes: its server loads the libraries once.
ONE_SERVER = pytest.mark.xdist_group("processes")


def start(
    *arguments: object,
    output: Path,
    patience: float = interrupt.PATIENCE,
    torchrun: bool = False,
    command: Callable[[list[str]], int] = main,
    **environment: str,
) -> ForkServerProcess:
    """The command in a process of its own that has the libraries already, and leads its own group.

    It writes to the file `output`; after a signal it waits for others for `patience` seconds. With `torchrun`
    its agent starts the command twice. `command` takes the place of the command's own function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conformer_vision.training.run"])
    command = _twice if torchrun else command
    process = context.Process(
        target=_command, args=(command, [str(a) for a in arguments], output, patience, environment)
    )
    process.start()
    return process


def _twice(arguments: list[str]) -> int:
    launch = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", start_method="fork", monitor_interval=0.1,
    )  # fmt: skip
    return max(elastic_launch(launch, _as_rank)(arguments).values())


def _as_rank(arguments: list[str]) -> int:
    rank_zero_only.rank = int(os.environ["RANK"])
    return main(arguments)


def _command(
    command: Callable[[list[str]], int],
    arguments: list[str],
    output: Path,
    patience: float,
    environment: dict[str, str],
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    end_at_sigterm()
    interrupt.PATIENCE = patience
    os.environ.update(environment)
    tempfile.tempdir = None  # which the fork server may have looked up
    rank_zero_only.rank = int(environment.get("RANK", 0))  # which lightning reads when it is imported
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for its own processes; it was made by a fork server
    # Without a buffer, as under PYTHONUNBUFFERED.
    with io.TextIOWrapper(output.open("wb", buffering=0), write_through=True) as file:
        os.dup2(file.fileno(), 1)  # for processes that this one starts
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        sys.exit(command(arguments))


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
