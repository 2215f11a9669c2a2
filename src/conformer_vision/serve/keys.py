"""The keys that requests have to show."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.requests import Request

from conformer_vision.errors import UserError, option
from conformer_vision.serve.limits import RefusedError

_MOST_BYTES = 100_000


class Keys:
    """Secrets, one of which a request shows as ``Authorization: Bearer KEY``.

    Args:
        path: A file with one key per line; empty lines do not count.

    Raises:
        UserError: The file cannot be read, is too large, or holds no key, or one that no header can carry.
    """

    def __init__(self, path: str) -> None:
        file = option("api_key_file", path)
        try:
            with Path(path).open("rb") as opened:
                content = opened.read(_MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        lines = [line.strip() for line in content.splitlines() if line.strip()]
        if not lines:
            raise UserError(f"{file} is empty; write a key into it, such as that of 'openssl rand -hex 32'")
        if len(content) > _MOST_BYTES or any(not _is_plain(line) for line in lines):
            raise UserError(
                f"{file} holds no keys; write one per line, of ASCII letters and digits without spaces"
            )
        self._digests = [_digest(line) for line in lines]

    def check(self, request: Request) -> None:
        """Refuse a request that shows none of the keys; equal and unequal ones take the same time.

        Raises:
            RefusedError: It does not.
        """
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        shown = _digest(key.strip().encode("latin-1", "replace"))
        fits = [hmac.compare_digest(shown, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(fits):
            raise RefusedError(
                401,
                "the key is missing or wrong; send the header 'Authorization: Bearer KEY'",
                reason="unauthorized",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _is_plain(line: bytes) -> bool:
    return all(0x21 <= byte <= 0x7E for byte in line)


def _digest(key: bytes) -> bytes:
    """Return a key in a form whose comparison says nothing of its length."""
    return hashlib.sha256(key).digest()
