"""The client: the answers are those of `Predictor`, and what goes wrong on the way is waited for or said."""

import http.server
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conformer_vision import Predictor
from conformer_vision.client import Client, ServerError
from conformer_vision.errors import UserError
from conformer_vision.runtime import Prediction, Predictions
from conformer_vision.serve.keys import Keys
from conformer_vision.serve.limits import Limits
from conformer_vision.serve.models import Loader
from http_server import png
from page_server import MadeUp, listening

ANSWER = {"predictions": [{"name": "x", "labels": ["a"], "probabilities": [1.0], "error": None, "new": 1}]}
Reply = tuple[int, dict[str, str], object]


@pytest.fixture(scope="module")
def address(load: Loader) -> Iterator[str]:
    with listening(load) as address:
        yield address


@contextmanager
def replying(*replies: Reply | Callable[[], Reply]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these replies in turn, the last one for ever, and the times of the requests."""
    times: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def do_GET(self) -> None:
            reply = replies[min(len(times), len(replies) - 1)]
            times.append(time.monotonic())
            status, headers, content = reply() if callable(reply) else reply
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has gone away is none of its business."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", times
        finally:
            server.shutdown()
            thread.join()


def close(a: Prediction, b: Prediction) -> bool:
    guesses = [(a.conv, b.conv), (a.trans, b.trans)]
    return (
        a.labels == b.labels
        and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
        and all(one is not None and two is not None and one.label == two.label for one, two in guesses)
        and (a.error, a.unsure, a.conformal_set, a.present) == (b.error, b.unsure, b.conformal_set, b.present)
    )


def test_the_answers_are_the_predictors(address: str, run_folder: Path, tmp_path: Path) -> None:
    """Of every kind of input, in order, and each broken one alone."""
    for number in (2, 10, 1):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "3.png").write_bytes(b"broken")
    array = np.asarray(Image.open(io.BytesIO(png(4))))
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    given = [tmp_path, tmp_path / "none.png", png(5), bytearray(png(6)), io.BytesIO(png(7)), array, deep]
    with Client(address) as client:
        answers = client(given, top_k=3)
        wanted = Predictor(run_folder, device="cpu")(given, top_k=3)
        assert isinstance(answers, Predictions)
        assert [answer.name for answer in answers] == [want.name for want in wanted]
        for answer, want in zip(answers, wanted, strict=True):
            assert (answer.error is None) == (want.error is None), answer
            if want.error is None:
                assert close(answer, want), answer.name
            else:
                assert str(answer.error).startswith(Path(answer.name).name) or answer.name in str(
                    answer.error
                )
        assert close(
            client(tmp_path / "2.png")[0], Predictor(run_folder, device="cpu")(tmp_path / "2.png")[0]
        )
        assert client([]) == []
        many = list(client.predict(png(number) for number in range(20)))
        assert [answer.name for answer in many] == [f"image {number}" for number in range(1, 21)]


def test_the_model_and_where_it_looks(address: str, load: Loader) -> None:
    with Client(address) as client:
        assert client.ready()
        model = client.model()
        served = load()
        assert (model.name, model.classes, model.explainable) == ("run", served.classes, True)
        assert model.max_body_bytes == Limits().body_bytes and model.max_pixels == Limits().pixels
        shown = client.explain(png(1), label=served.classes[3])
        assert shown.size == Image.open(io.BytesIO(png(1))).size
        with pytest.raises(ServerError, match="there is no class 'zebra'"):
            client.explain(png(1), label="zebra")


def test_several_labels_sets_and_reasons_arrive() -> None:
    fields: dict[str, Any] = {"labels": ("a", "b"), "probabilities": (0.75, 0.25), "present": ("a",)}
    fields |= {"unsure": "because", "conformal_set": ("a", "b")}
    with listening(MadeUp(**fields).load("a", "b")) as address, Client(address) as client:
        assert client(png()) == [Prediction("image 1", **fields)]


def test_an_image_that_is_too_large_fails_alone() -> None:
    model = MadeUp(labels=("a",), probabilities=(1.0,))
    with listening(model.load("a"), limits=Limits(max_body_mb=0.02, max_megapixels=0.01)) as address:
        with Client(address) as client:
            large, wide, good = client([bytes(50_000), png(size=(200, 60)), png()])
        assert "image 1" in str(large.error) and "image 2" in str(wide.error) and good.error is None


def test_a_busy_server_is_asked_again_when_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=9), usegmt=True)
    busy: list[Reply] = [(503, {"Retry-After": text}, {"error": "full"}) for text in ("1", "0", date)]
    with replying(*busy, (200, {}, ANSWER)) as (address, times), Client(address) as client:
        assert client(png())[0].labels == ("a",)
        pauses = np.diff(times)
        assert pauses[0] >= 1 and len(pauses) == 3


def test_a_server_that_stays_busy_or_asks_for_too_long_a_wait() -> None:
    for status in (503, 429, 504):
        with replying((status, {"Retry-After": "0"}, {"error": "the queue is full"})) as (address, times):
            with (
                Client(address, retries=2) as client,
                pytest.raises(ServerError, match="busy: the queue is full"),
            ):
                client(png())
            assert len(times) == 3
    with replying((503, {"Retry-After": "3600"}, b"<html>")) as (address, times), Client(address) as client:
        with pytest.raises(ServerError, match="is busy: status 503") as raised:
            client(png())
        assert len(times) == 1 and "\n" not in str(raised.value)


def test_a_server_that_is_not_there_or_too_slow() -> None:
    with replying((200, {}, ANSWER)) as (address, _):
        pass
    with Client(address, retries=0) as client:
        with pytest.raises(ServerError, match=f"{address} cannot be reached: .*; is the server running"):
            client(png())
        assert not client.ready()
    slow = threading.Event()

    def late() -> Reply:
        slow.wait(5)
        return 200, {}, ANSWER

    with replying(late) as (address, _), Client(address, retries=0, timeout=0.1) as client:
        with pytest.raises(ServerError, match="no answer in time; raise timeout"):
            client(png())
        slow.set()


@pytest.mark.parametrize(
    "content",
    [
        b"<html>hello</html>",
        [],
        {},
        {"predictions": []},
        {"predictions": [1]},
        {"predictions": [{"name": "x"}]},
        {"predictions": [{**ANSWER["predictions"][0], "conv": 7}]},
        {"predictions": [{**ANSWER["predictions"][0], "labels": 7}]},
        b"[" * 100_000,
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_server_of_something_else(content: object) -> None:
    with replying((200, {}, content)) as (address, _), Client(address) as client:
        with pytest.raises(ServerError, match="is it a server of conformer-vision") as raised:
            client(png())
        assert "\n" not in str(raised.value)
        with pytest.raises(ServerError):
            client.model()


def test_refusals_are_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    model = MadeUp(labels=("a",), probabilities=(1.0,))
    with listening(model.load("a"), keys=Keys(str(tmp_path / "keys"))) as address:
        with Client(address, api_key="secret") as client:
            assert client(png())[0].labels == ("a",) and client.model().name == "made up"
        for key in (None, "wrong"):
            with (
                Client(address, api_key=key) as client,
                pytest.raises(ServerError, match="; give it as api_key"),
            ):
                client(png())
    with replying((400, {}, {"error": "two\nlines"})) as (address, times), Client(address) as client:
        with pytest.raises(ServerError, match=r"two.*lines") as raised:
            client(png())
        assert "\n" not in str(raised.value) and len(times) == 1
    with replying((413, {}, b"<html>of a proxy")) as (address, _), Client(address) as client:
        assert client(png())[0].error == "image 1: status 413"


def test_arguments() -> None:
    mistakes = [("timeout", 0), ("retries", -1), ("parallel", 0), ("api_key", "with space"), ("api_key", "é")]
    for name, value in mistakes:
        with pytest.raises(UserError, match=name):
            Client("http://host", **{name: value})
    for url in ("host:8000", "ftp://host", "http://host:port", "http://[", "http://", 8000):
        with pytest.raises(UserError, match="url"):
            Client(url)
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(UserError, match="top_k 0"):
            client.predict(png(), top_k=0)
        with pytest.raises(UserError, match="input 2 is of type int"):
            client.predict([png(), 7])


def test_stopping_early_waits_for_nothing() -> None:
    replies: list[Reply] = [(200, {}, ANSWER), (503, {"Retry-After": "30"}, {"error": "full"})]
    with replying(*replies) as (address, _), Client(address, parallel=1) as client:
        answers = client.predict(png(number) for number in range(50))
        assert next(answers).labels == ("a",)
        began = time.monotonic()
        answers.close()  # type: ignore[attr-defined]
        assert time.monotonic() - began < 10


def test_it_imports_no_torch() -> None:
    code = "import conformer_vision.client, sys; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n", done.stderr
