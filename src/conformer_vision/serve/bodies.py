"""From the body of a request to images that are still encoded, never holding more than is allowed."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from conformer_vision.serve.limits import MEGABYTE, Hold, Limits, RefusedError
from conformer_vision.serve.worker import Worker

_LONGEST_NAME = 120
_ACCEPTED = (
    "send an image as image/… or application/octet-stream, a form as multipart/form-data, or application/json"
)


class Upload(NamedTuple):
    """An image as it arrived."""

    name: str
    data: bytes


async def read_images(request: Request, *, limits: Limits, held: Hold, pool: Worker) -> list[Upload]:
    """Read the images of a request.

    Args:
        request: Its body is read once.
        limits: The bounds of the body.
        held: Holds the bytes of the body until the caller gives them back.
        pool: Decodes JSON, which takes too long for the thread of all connections.

    Raises:
        RefusedError: The body is too large, of another kind, or not what its content type says.
        ClientDisconnect: The client went away.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    read = _reader(kind)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise RefusedError(415, f"Content-Encoding {_shown(coding)} is not read; send the body as it is")
    check_length(request, limits)
    images = await read(request, limits, held, pool)
    if not images:
        raise RefusedError(400, "the request holds no image; send one or more")
    return images


def check_length(request: Request, limits: Limits) -> None:
    """Refuse a body that says itself that it is too large, before any of it is read."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.body_bytes:
        raise _too_large(limits)


def check_kind(request: Request) -> None:
    """Refuse a content type that is not read, before the body is."""
    _reader(request.headers.get("content-type", "").partition(";")[0].strip().lower())


_Reader = Callable[[Request, Limits, Hold, Worker], Awaitable[list[Upload]]]


def _reader(kind: str) -> _Reader:
    if kind == "application/octet-stream" or kind.startswith("image/"):
        return _raw
    if kind == "multipart/form-data":
        return _form
    if kind == "application/json":
        return _json
    given = f"content type {_shown(kind)} is not read" if kind else "the request has no content type"
    raise RefusedError(415, f"{given}; {_ACCEPTED}")


def _too_large(limits: Limits) -> RefusedError:
    most = limits.body_bytes / MEGABYTE
    return RefusedError(
        413, f"the body is larger than {most:g} MB; send smaller or fewer images", reason="too_large"
    )


def _too_many(limits: Limits) -> RefusedError:
    return RefusedError(
        413,
        f"the request holds more than {limits.max_images} images; send them in several",
        reason="too_large",
    )


async def _chunks(request: Request, limits: Limits, held: Hold) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives, chunked or not, as long as it may still grow."""
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.body_bytes:
            raise _too_large(limits)
        held.take(len(chunk))
        yield chunk


async def _whole(request: Request, limits: Limits, held: Hold) -> bytes:
    body = bytearray()
    async for chunk in _chunks(request, limits, held):
        body += chunk
    return bytes(body)


async def _raw(request: Request, limits: Limits, held: Hold, pool: Worker) -> list[Upload]:
    data = await _whole(request, limits, held)
    return [Upload("image 1", data)] if data else []


class _InMemory(MultiPartParser):
    """Writes no file to the disk; the body is bounded."""

    spool_max_size = sys.maxsize


async def _form(request: Request, limits: Limits, held: Hold, pool: Worker) -> list[Upload]:
    # Parts that are no files are refused below, with their names; they need a bound nevertheless.
    parser = _InMemory(
        request.headers,
        _chunks(request, limits, held),
        max_files=limits.max_images,
        max_fields=limits.max_images,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(limits) from error
        raise RefusedError(400, f"the body is no multipart form: {_sentence(error.message)}") from error
    except (FormParserError, UnicodeError, ValueError) as error:
        raise RefusedError(400, "the body is no multipart form") from error
    images: list[Upload] = []
    try:
        for field, part in form.multi_items():
            if not isinstance(part, UploadFile):
                remedy = "a form holds images only, parameters go into the URL"
                raise RefusedError(400, f"the field {_shown(field)} is no file; {remedy}")
            name = clean_name(part.filename or field, number=len(images) + 1)
            images.append(Upload(name, await part.read()))
    finally:
        await form.close()
    return images


async def _json(request: Request, limits: Limits, held: Hold, pool: Worker) -> list[Upload]:
    body = await _whole(request, limits, held)
    return await pool.run(partial(_from_json, body, limits))


def _from_json(body: bytes, limits: Limits) -> list[Upload]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # also of encodings, and of numbers that are too long
        raise RefusedError(400, "the body is no JSON") from error
    form = 'send {"images": ["BASE64", {"name": "photo.jpg", "data": "BASE64"}]}'
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise RefusedError(400, f"the body has no list of images; {form}")
    if others := content.keys() - {"images"}:
        raise RefusedError(400, f"the body has {_shown(min(others))}, which means nothing here; {form}")
    items = content["images"]
    if len(items) > limits.max_images:
        raise _too_many(limits)
    return [_from_item(item, number, form) for number, item in enumerate(items, start=1)]


def _from_item(item: object, number: int, form: str) -> Upload:
    name = f"image {number}"
    if isinstance(item, dict) and not item.keys() - {"name", "data"} and isinstance(item.get("data"), str):
        given, data = item.get("name", name), item["data"]
    else:
        given, data = name, item
    if not isinstance(data, str) or not isinstance(given, str):
        raise RefusedError(
            400, f"image {number} is neither a text nor an object with data and perhaps a name; {form}"
        )
    try:
        packed = data.encode("ascii").translate(None, b" \t\r\n")  # command lines wrap it
        return Upload(clean_name(given, number=number), base64.b64decode(packed, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"image {number} is not base64") from error


def clean_name(name: str, *, number: int) -> str:
    """Return what an image is called in answers: the last part of its path, short and printable."""
    last = re.split(r"[/\\]", name)[-1].encode("utf-8", "replace").decode()
    last = "".join(letter if letter.isprintable() else "?" for letter in last).strip()
    return last[-_LONGEST_NAME:] or f"image {number}"


def _shown(text: str) -> str:
    """Return a text of the client's for a message."""
    return repr(text[:60].encode("utf-8", "replace").decode())


def _sentence(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
