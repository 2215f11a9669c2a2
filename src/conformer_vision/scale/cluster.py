"""The Ray cluster that computes: the one that ``RAY_ADDRESS`` names, or one of this machine's processors."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from conformer_vision.errors import UserError, first_line, option, reason_of
from conformer_vision.extras import require

_OBJECTS = 128 << 20
"""Bytes for what processes hand to each other, which is only the numbers of parts."""
_SECONDS = 10.0
"""How long the head of a cluster is waited for."""
_MOST_CPUS = 8
"""For each GPU; decoding images takes no more."""

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # nothing of what its processes say comes to stdout
}
_ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing anywhere
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: listens on the loopback interface only
    "RAY_AUTH_MODE": "token",  # and answers nobody else on this machine
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # ends soon after a command that was killed
}


@dataclass(frozen=True)
class Shares:
    """How a cluster is shared out."""

    workers: int
    cpus: int
    """Of each worker, which computes in as many threads."""
    gpus: int
    """Of each worker: 0 or 1."""


@contextmanager
def open_cluster(*, workers: int | None, device: str) -> Iterator[Shares]:
    """Connect to the cluster of ``RAY_ADDRESS``; without one, run a cluster on this machine for the block.

    A cluster of this machine listens on the loopback interface, has no dashboard, sends no statistics, and
    leaves neither processes nor files.

    Args:
        workers: Processes that compute; one for each GPU, or else for each CPU, by default.
        device: ``auto``, ``cpu``, ``cuda``.

    Raises:
        UserError: The extra is not installed, the cluster cannot be reached or started, or has not what is
            asked for.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{option('workers', workers)}: must be 1 or more")
    address = os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    if address:
        _check_reachable(address)
    with _environment(_QUIET if address else {**_QUIET, **_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
        ray = require("ray")
        require("ray.data")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        folder = None if address else tempfile.mkdtemp(prefix="ray-")
        try:
            with _quiet_libraries():
                _start(ray, address, folder, workers)
                yield _shares(ray.cluster_resources(), workers=workers, device=device)
        finally:
            ray.shutdown()
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing answers, for which Ray would wait for minutes.

    Raises:
        UserError: Nothing answers, or it is an address for Ray's client or its jobs.
    """
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address}: give HOST:PORT of the cluster's head, on a machine of the cluster"
        )
    host, colon, port = address.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()):
        return  # auto, which Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address}: {reason_of(error)}") from error


def _start(ray: Any, address: str | None, folder: str | None, workers: int | None) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own: dict[str, Any] = {}
    if address is None:
        own = {
            "num_cpus": workers or _processors(),
            "include_dashboard": False,
            "object_store_memory": _OBJECTS,
            "_temp_dir": folder,
        }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address or "local", logging_level=logging.CRITICAL, log_to_driver=False, **own)
    except Exception as error:  # Ray has no common class for these
        if address is None:
            raise UserError(f"Ray does not start on this machine: {first_line(error)}") from error
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address}: {first_line(error)}") from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)


def _shares(total: dict[str, float], *, workers: int | None, device: str) -> Shares:
    cpus, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if device.startswith("cuda") and not gpus:
        raise UserError(f"{option('device', device)}: the Ray cluster has no GPU")
    on_gpus = gpus > 0 and device != "cpu"
    most = gpus if on_gpus else cpus
    if most < 1:
        raise UserError("the Ray cluster has no CPU to compute with")
    if workers is not None and workers > most:
        kind = "GPU" if on_gpus else "CPU"
        raise UserError(f"{option('workers', workers)}: the Ray cluster has {most} {kind}{'s' * (most > 1)}")
    number = workers or most
    return Shares(number, min(max(cpus // number, 1), _MOST_CPUS) if on_gpus else 1, int(on_gpus))


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Drop what Ray's part in C++ writes to the terminal within the block; Python's stderr stays."""
    if sys.stderr is None:
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    before = sys.stderr
    with open(kept, "w", encoding=before.encoding, errors=before.errors, buffering=1) as stderr:
        before.flush()
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        sys.stderr = stderr
        try:
            yield
        finally:
            sys.stderr = before
            stderr.flush()
            os.dup2(kept, 2)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables within the block; Ray's processes inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= values
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
