"""The files of the page, read once, with ETags and without anything from elsewhere."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

INDEX = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Of every answer: browsers load nothing from elsewhere, and guess no content types."""


class Static(NamedTuple):
    """A file that is served as it is."""

    content: bytes
    kind: str
    etag: str

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 for a client that has it."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        known = [
            each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")
        ]
        if self.etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.kind, headers=headers)


def static(content: bytes, kind: str) -> Static:
    """Return a file from its content."""
    return Static(content, kind, f'"{hashlib.sha256(content).hexdigest()[:16]}"')


def page_files() -> dict[str, Static]:
    """Return the files of the page by path, ``/`` for the page itself."""
    found = {}
    for entry in (files(__package__) / "page").iterdir():
        kind = next((kind for suffix, kind in _KINDS.items() if entry.name.endswith(suffix)), None)
        if kind is not None and entry.is_file():
            found["/" if entry.name == INDEX else f"/{entry.name}"] = static(entry.read_bytes(), kind)
    return found
