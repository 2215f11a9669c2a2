"""Servers in processes of their own, reached over sockets."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from command_line import ENVIRONMENT
from http_server import PNG, png

SUPPORT = Path(__file__).parent
STUB = SUPPORT / "stub_server.py"
CLIENT = httpx.Client(verify=False, trust_env=False, timeout=20)
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"


class Running(NamedTuple):
    """A server and where it is."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def go(self) -> None:
        """Let the model answer."""
        (self.folder / "go").touch()

    def send(self, data: bytes) -> socket.socket:
        """Send raw bytes over a new connection."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(data)
        return connection

    def predict(self) -> httpx.Response:
        return CLIENT.post(f"{self.url}/predict", content=png(), headers=PNG)

    def in_flight(self, number: int) -> None:
        """Wait until so many requests have begun, beside that for the figures."""
        line = f"conformer_vision_requests_in_flight {number + 1:.1f}\n"
        while line not in CLIENT.get(f"{self.url}/metrics").text:
            pass

    def end(self, *, timeout: float = 20) -> tuple[int, str]:
        """Wait until the process has ended; return its status and what it wrote to stderr."""
        _, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, err


@contextmanager
def started(words: list[str], folder: Path) -> Iterator[Running]:
    paths = [*filter(None, [ENVIRONMENT.get("PYTHONPATH")]), str(SUPPORT)]
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving at http"), line + process.communicate()[1]
        yield Running(process, line.split()[-1], folder)
    finally:
        process.kill()
        process.communicate()


def stub(folder: Path, **options: object) -> Any:
    words = [sys.executable, str(STUB), str(folder), *(f"{name}={value}" for name, value in options.items())]
    return started(words, folder)


def received(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    with connection:
        content = b""
        while data := connection.recv(65536):
            content += data
        return content
