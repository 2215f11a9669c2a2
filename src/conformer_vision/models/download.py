"""Download of published weights into torch.hub's cache, with every byte accounted for.

torch.hub's own function has no timeout, takes a cut connection for the end of the file and trusts a
file that is already in the cache, so the transfer is done here; the place and the convention of the
hash in the file name ("...-f6860372.pth") are torch.hub's.
"""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from conformer_vision.errors import UserError

_logger = logging.getLogger(__name__)

# As torch.hub, but not fewer than the 8 digits in use, and no date ("-20211206.pth").
_HASH = re.compile(r"-(?!(?:19|20)\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.[^-]*$")
_CHUNK = 1 << 20


def fetch_pretrained(
    url: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    timeout: float = 30.0,
) -> Path:
    """Return the local copy of the weights at `url`, downloading them if they are not in the cache.

    A file name that ends in ``-<first digits of its sha256>.<suffix>`` is checked, after the download
    and whenever the cached copy is used; a cached copy that fails is downloaded again. Only a complete,
    checked file ever gets its name in the cache. A URL without a hash gets a folder of its own there,
    so that files of one name from two places are not confused.

    Args:
        url: http or https address of a checkpoint.
        cache_dir: Folder to keep it in; torch.hub's by default (``torch.hub.get_dir()/checkpoints``).
        timeout: Seconds without an answer or without data after which the transfer is given up.

    Raises:
        UserError: Not reachable, not found, cut short, of another hash, or the cache is not writable.
    """
    name = _file_name(url)
    expected = match[1] if (match := _HASH.search(name)) else ""
    folder = Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"
    if not expected:
        folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / name

    partial = folder / f"{name}.{uuid.uuid4().hex}.partial"
    try:
        if path.is_file():
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest().startswith(expected):
                    return path
            _logger.warning("%s is damaged (its hash is not %s) and is downloaded again", path, expected)
        _logger.info("downloading %s to %s", url, path)
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with partial.open("xb") as file:
            for chunk in _chunks(url, timeout=timeout):
                digest.update(chunk)
                file.write(chunk)
        if not (found := digest.hexdigest()).startswith(expected):
            raise UserError(
                f"{url}: the downloaded file is not the published one (sha256 starts with {found[:8]}, not "
                f"{expected}); try again or {_remedy(name)}"
            )
        os.replace(partial, path)
    except OSError as error:  # of the cache; errors of the network are UserErrors already
        raise UserError(
            f"{url}: cannot keep the file at {path} ({error.strerror or error}); make room there or set "
            "TORCH_HOME to a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):  # there is none, or not even a folder that could hold one
            partial.unlink()
    return path


def _file_name(url: str) -> str:
    """Return the file name in the path of an http or https URL."""
    if not url.isprintable():
        raise UserError(f"{url!r}: not a valid URL (it has a line break or another control character)")
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"{url}: not a valid URL ({error})") from error
    name = parts.path.rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not parts.netloc or name in ("", ".", ".."):
        raise UserError(f"{url}: not the address of a checkpoint; give http(s)://host/path/file.pth")
    return name


def _remedy(name: str) -> str:
    return f"download {name} yourself and call load_checkpoint(model, path)"


def _chunks(url: str, *, timeout: float) -> Iterator[bytes]:
    """Yield the body of `url`; every error of the network becomes a UserError."""
    request = urllib.request.Request(url, headers={"User-Agent": "conformer-vision"})
    received, announced = 0, None
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            announced = response.length  # before reading; None where the server does not say
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                yield chunk
    except urllib.error.HTTPError as error:
        reason = f"the server answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = f"no connection ({error.reason})"
    except TimeoutError:
        reason = f"no data for {timeout:g} seconds"
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an impossible host name
        reason = f"the connection broke ({str(error) or type(error).__name__})"
    else:
        if announced is None or received == announced:
            return
        reason = f"cut short, {received} of {announced} bytes arrived"
    reason = " ".join(reason.split())[:200]  # parts of it are the server's
    raise UserError(f"{url}: {reason}; try again or {_remedy(_file_name(url))}")
