"""A cluster of two processes on this machine: one is killed midway, then the command; it goes on after both.

Starting Ray takes a while, so these tests run where ``CLUSTER_TESTS`` is set.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from pyarrow import parquet

from command_line import COMMAND, ENVIRONMENT, run
from exports import make_run

pytestmark = [
    pytest.mark.skipif("CLUSTER_TESTS" not in os.environ, reason="takes long; set CLUSTER_TESTS=1"),
    pytest.mark.timeout(600),
]
pytest.importorskip("ray", reason="needs the extra scale")

PATIENCE = 200
ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith("RAY_")}


class Gate:
    """An image that its server keeps back until the gate is opened."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.opened = threading.Event()
        self.port = 0
        """Of the first who asked."""

    def wait(self, port: int) -> None:
        if not self.asked.is_set():
            self.port = port
            self.asked.set()
        self.opened.wait(PATIENCE)

    def asker(self) -> psutil.Process:
        assert self.asked.wait(PATIENCE)
        for connection in psutil.net_connections("tcp"):
            if connection.laddr.port == self.port and connection.pid not in (None, os.getpid()):
                return psutil.Process(connection.pid)
        raise AssertionError("nobody asks")


@contextmanager
def serving(folder: Path, gates: dict[str, Gate]) -> Iterator[str]:
    """Serve a folder; yield its address as the command takes it."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            if gate := gates.get(self.path):
                gate.wait(self.client_address[1])
            try:
                super().do_GET()
            except ConnectionError:  # who asked was killed
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"fsspec+http://127.0.0.1:{server.server_port}"
    finally:
        for gate in gates.values():
            gate.opened.set()
        server.shutdown()
        thread.join()
        server.server_close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_no_image_is_lost_or_doubled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_run(Path("run"))
    photos, served = Path("photos"), Path("served")
    for folder in (photos, served):
        folder.mkdir()
        for number in range(1, 9):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{folder.name}{number}.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    first, second = Gate(), Gate()
    with serving(served, {"/served1.png": first, "/served2.png": second}) as address:
        inputs = [f"{address}/served1.png", "photos", f"{address}/served2.png"]
        arguments = [str(model), *inputs, "--engine=ray", "--output=answers", "--workers=2", "--batch_size=2"]
        with open("log", "w") as log:
            command = subprocess.Popen(
                [*COMMAND, "predict", *arguments], stdout=log, stderr=log, env=ENVIRONMENT
            )
        try:
            killed = first.asker()
            assert killed.cmdline()[0].startswith("ray::")
            killed.kill()
            first.opened.set()
            until(lambda: second.asked.is_set() or len(list(Path("answers").glob("part-*"))) > 0)
            processes = psutil.Process(command.pid).children(recursive=True)
        finally:
            command.kill()
            command.wait()
        until(lambda: not any(map(is_running, processes)))
        second.opened.set()
        before = {path.name: path.stat().st_mtime_ns for path in Path("answers").glob("part-*")}
        kept = [row for name in before for row in parquet.read_table(f"answers/{name}").to_pylist()]
        done = subprocess.run(
            [*COMMAND, "predict", *arguments],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            timeout=PATIENCE,
        )
    after = {path.name: path.stat().st_mtime_ns for path in Path("answers").glob("part-*")}
    assert done.stdout == f"answers: the answers to 11 images, {11 - len(kept)} of them new\n", done
    said = [f"{len(kept)} of 11 images are answered already"] if kept else []
    broken_before = any(row["error"] for row in kept)
    if not broken_before:
        said.append("1 of the new images could not be read; the column error says why")
    assert done.returncode == (0 if broken_before else 1)
    assert [line for line in done.stderr.splitlines() if not line.startswith("classified ")] == said
    assert before.items() < after.items()
    assert not any("Traceback" in line for line in Path("log").read_text().splitlines())

    rows = parquet.read_table("answers").to_pylist()
    served_as = address.removeprefix("fsspec+")
    found = {row["name"].replace(f"{served_as}/", "served/"): row for row in rows}
    assert len(found) == len(rows) == 11
    plain = run("predict", model, "served/served1.png", "photos", "served/served2.png", "--json")
    for answer in json.loads(plain.out):
        row = found.pop(answer["name"])
        assert row["labels"] == answer["labels"]
        assert row["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)
        assert row["error"] == answer["error"]
    assert not found


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    done = subprocess.run(
        [*COMMAND, "predict", "photo.png", "--engine=ray", "--output=answers"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"RAY_ADDRESS": "127.0.0.1:9"},
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    *_, line = done.stderr.splitlines()
    assert line.startswith("error: no Ray cluster at RAY_ADDRESS=127.0.0.1:9: "), done.stderr
    assert not Path("answers").exists()
