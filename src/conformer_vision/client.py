"""Ask a server for predictions, as `Predictor` is asked for them; needs neither PyTorch nor a model.

::

    from conformer_vision.client import Client

    with Client("http://127.0.0.1:8000") as client:
        for prediction in client.predict("photos"):
            print(prediction.name, prediction.labels, prediction.probabilities)
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any

from PIL import Image

from conformer_vision.data import BrokenImageError
from conformer_vision.errors import UserError, one_line, reason_of
from conformer_vision.extras import require
from conformer_vision.runtime.answers import Guess, Prediction, Predictions
from conformer_vision.runtime.inputs import ImageInput, NamedImage, as_several, named_images

_BUSY = (408, 429, 502, 503, 504)
"""Statuses after which the same request may be answered: of the server, or of a proxy in front of it."""
_OF_THE_IMAGE = (413, 415, 422)
"""Statuses that say something of the one image in a request."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
"""Seconds; a server that asks for a longer pause is not waited for."""
_SHOWN = 300
"""Characters of a server's line that an error shows."""


class ServerError(UserError):
    """The server cannot be reached, has no answer in time, or refuses the request; one line says why."""


@dataclass(frozen=True)
class ServerModel:
    """The model that a server answers with, and what it accepts."""

    name: str
    version: str
    """The beginning of the SHA-256 of the model's file."""
    architecture: str
    format: str
    classes: tuple[str, ...]
    multilabel: bool
    explainable: bool
    """Whether the server says where the model looks."""
    max_body_bytes: int
    """Of a request."""
    max_pixels: int
    """Of an image."""


class Client:
    """A connection to a server of ``conformer-vision serve``; several threads may use one client.

    Args:
        url: Address of the server, as it prints it.
        api_key: The key, if the server asks for one.
        timeout: Seconds until one attempt at an answer is given up.
        retries: How often a request is sent again while the server is busy or cannot be reached. It waits as
            long as ``Retry-After`` asks, and without that header longer each time.
        parallel: Requests on their way at a time. The server makes batches of them.

    Raises:
        UserError: An address or number that cannot be, or httpx is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        parallel: int = 4,
    ) -> None:
        if not timeout > 0:
            raise UserError(f"timeout {timeout}: must be more than 0 seconds")
        if retries < 0:
            raise UserError(f"retries {retries}: must be 0 or more")
        if parallel < 1:
            raise UserError(f"parallel {parallel}: must be 1 or more")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise UserError("api_key: no header can carry it; give ASCII letters and digits without spaces")
        self._httpx = require("httpx")
        try:
            address = self._httpx.URL(url)
        except (self._httpx.InvalidURL, TypeError):
            address = None
        if address is None or address.scheme not in ("http", "https") or re.fullmatch("|.*%.*", address.host):
            raise UserError(f"url {url!r}: give the address of a server, such as http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._retries = retries
        self._parallel = parallel
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = self._httpx.Limits(max_connections=parallel)
        self._http = self._httpx.Client(base_url=self.url, headers=headers, timeout=timeout, limits=limits)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int | None = None) -> Predictions:
        """Return the results of `predict` as a list."""
        return Predictions(self.predict(inputs, top_k=top_k))

    def predict(
        self, inputs: ImageInput | Iterable[ImageInput], *, top_k: int | None = None
    ) -> Iterator[Prediction]:
        """Yield the server's answers in the order of the images, each of which is a request of its own.

        Args:
            inputs: As for `Predictor`: paths of files or folders, and images of every kind. Files are sent as
                they are.
            top_k: Number of classes per image; by default the server decides.

        Raises:
            UserError: ``top_k`` below 1, or as `Predictor.predict` for inputs.
            ServerError: The server cannot be reached, stays busy, or refuses the request. An image that is
                missing, broken or too large raises nothing; its `Prediction` has an ``error``.
        """
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k {top_k}: must be 1 or more")
        inputs = as_several(inputs)
        images = named_images(inputs)
        if isinstance(inputs, (list, tuple)):  # find mistakes before anything is sent
            images = iter(list(images))
        return self._stream(images, top_k)

    def model(self) -> ServerModel:
        """Ask which model answers.

        Raises:
            ServerError: As `predict`.
        """
        answer = self._send("GET", "/model")
        if answer.status_code != 200:
            raise self._refused(answer)
        found = _json(answer)
        try:
            about, limits = found["model"], found["limits"]
            return ServerModel(
                name=str(about["name"]),
                version=str(about["version"]),
                architecture=str(about["architecture"]),
                format=str(about["format"]),
                classes=tuple(map(str, found["classes"])),
                multilabel=bool(found["multilabel"]),
                explainable=bool(found["explainable"]),
                max_body_bytes=int(limits["body_bytes"]),
                max_pixels=int(limits["pixels"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange() from error

    def ready(self) -> bool:
        """Tell whether the server takes requests; asks once, and raises nothing."""
        try:
            return bool(self._http.get("/ready").status_code == 200)
        except self._httpx.HTTPError:
            return False

    def explain(self, image: ImageInput, *, label: str | None = None, method: str = "cam") -> Image.Image:
        """Return an image with the evidence for a class laid over it.

        Args:
            image: As in `predict`, but no folder.
            label: The class; by default the most probable one.
            method: A name of `METHODS` (docs/explain.md).

        Raises:
            ServerError: As `predict`, and for an image that cannot be read, a class or method that the model
                does not have, or a model that cannot be explained.
            BrokenImageError: The file cannot be read here.
        """
        named = next(named_images(image))
        parameters = {"format": "png", "method": method} | ({} if label is None else {"class": label})
        answer = self._send("POST", "/explain", named, parameters=parameters)
        if answer.status_code != 200:
            raise self._refused(answer)
        with Image.open(BytesIO(answer.content), formats=("PNG",)) as opened:
            opened.load()
            return opened

    def _stream(self, images: Iterator[NamedImage], top_k: int | None) -> Iterator[Prediction]:
        pending: deque[Future[Prediction]] = deque()
        pool, stop = ThreadPoolExecutor(self._parallel, thread_name_prefix="client"), Event()
        try:
            for image in images:
                pending.append(self._submit(pool, image, top_k, stop))
                if len(pending) == 2 * self._parallel:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # also if the caller stops early
            stop.set()
            pool.shutdown(cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, image: NamedImage, top_k: int | None, stop: Event
    ) -> Future[Prediction]:
        try:
            return pool.submit(self._predict, image.held(compress=True), top_k, stop)
        except BrokenImageError as error:
            done: Future[Prediction] = Future()
            done.set_result(Prediction(image.name, (), (), error=str(error)))
            return done

    def _predict(self, image: NamedImage, top_k: int | None, stop: Event) -> Prediction:
        parameters = {} if top_k is None else {"top_k": str(top_k)}
        try:
            answer = self._send("POST", "/predict", image, parameters=parameters, stop=stop)
        except BrokenImageError as error:
            return Prediction(image.name, (), (), error=str(error))
        content = _json(answer)
        if "predictions" in content:
            return replace(self._prediction(content), name=image.name)
        if answer.status_code in _OF_THE_IMAGE:
            return Prediction(image.name, (), (), error=f"{image.name}: {_line(answer)}")
        raise self._refused(answer)

    def _prediction(self, content: Mapping[str, Any]) -> Prediction:
        """Return the one prediction of an answer."""
        known = {each.name for each in fields(Prediction)}
        try:
            (found,) = content["predictions"]
            values = {name: value for name, value in found.items() if name in known}
            for name in ("labels", "probabilities"):
                values[name] = tuple(found[name])
            for name in ("conformal_set", "present"):
                values[name] = None if values.get(name) is None else tuple(values[name])
            for name in ("conv", "trans"):
                values[name] = None if values.get(name) is None else Guess(*values[name])
            return Prediction(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._strange() from error

    def _send(
        self,
        method: str,
        path: str,
        image: NamedImage | None = None,
        *,
        parameters: Mapping[str, str] | None = None,
        stop: Event | None = None,
    ) -> Any:
        """Send a request until there is an answer that says more than "later"."""
        options: dict[str, Any] = {"params": parameters or {}}
        if image is not None:
            name = Path(image.name).name.encode("utf-8", "replace").decode()
            options["files"] = {"image": (name, _content(image), "application/octet-stream")}
        stop = stop or Event()
        for attempt in range(self._retries + 1):
            try:
                answer = self._http.request(method, path, **options)
            except self._httpx.TimeoutException as error:
                last, cause = f"{self.url} gives no answer in time; raise timeout, or try later", error
                pause: float | None = None
            except self._httpx.HTTPError as error:
                last, cause = (
                    f"{self.url} cannot be reached: {reason_of(error)}; is the server running?",
                    error,
                )
                pause = None
            else:
                if answer.status_code not in _BUSY:
                    return answer
                last, cause = f"{self.url} is busy: {_line(answer)}", None
                pause = _retry_after(answer.headers.get("Retry-After"))
            if pause is None:
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1)
            if attempt == self._retries or pause > _LONGEST_PAUSE or stop.wait(pause):
                raise ServerError(last) from cause
        raise AssertionError

    def _refused(self, answer: Any) -> ServerError:
        if answer.is_success:
            return self._strange()
        remedies = {401: "; give it as api_key", 404: "; is it a server of conformer-vision?"}
        return ServerError(f"{self.url}: {_line(answer)}{remedies.get(answer.status_code, '')}")

    def _strange(self) -> ServerError:
        return ServerError(f"{self.url} answers something else; is it a server of conformer-vision?")


def _json(answer: Any) -> Mapping[str, Any]:
    """Return the content of an answer; nothing where it is no JSON object."""
    try:
        content = answer.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _line(answer: Any) -> str:
    """Return what an error says of itself; a proxy in front of the server answers in other ways."""
    return one_line(str(_json(answer).get("error", f"status {answer.status_code}")))[:_SHOWN]


def _content(image: NamedImage) -> bytes:
    """Return the bytes that are sent of an image."""
    source = image.held(compress=True).source
    if isinstance(source, bytes):
        return source
    assert isinstance(source, Path)
    try:
        return source.read_bytes()
    except OSError as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else reason_of(error)
        raise BrokenImageError(f"{image.name}: cannot be read as an image ({why})") from error


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of the header, which may also be a date; None for anything else."""
    if text is None:
        return None
    try:
        if text.strip().isdecimal():
            return float(text)
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None
