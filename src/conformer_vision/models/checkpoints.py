"""Load weights: safely, from any published layout, completely or not at all."""

import errno
import hashlib
import http.client
import logging
import os
import re
import socket
import sys
import urllib.error
import urllib.parse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conformer_vision.errors import UserError, option, reason_of, some_names, words
from conformer_vision.models.layouts import (
    check_tensors,
    convert_state_dict,
    to_official,
    to_openmmlab,
    unwrap_state_dict,
)

__all__ = [
    "check_fit",
    "checkpoint_filter_fn",
    "convert_state_dict",
    "fetch_pretrained",
    "is_safetensors",
    "load_checkpoint",
    "pretrained_path",
    "read_checkpoint",
    "to_official",
    "to_openmmlab",
]

_log = logging.getLogger(__name__)
_PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")  # ".tar" as in timm's "model_best.pth.tar"
_COUNTER = ".num_batches_tracked"  # absent before PyTorch 0.4.1 and without effect on outputs
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# As torch.hub's, but with the 8 digits in use or more, and no date ("-20211206.pth").
_HASH = re.compile(r"-(?!(?:19|20)\d\d[01]\d[0-3]\d\.)([0-9a-f]{8,64})\.[^-]*$")
_DOWNLOAD_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ValueError,  # an impossible host
    RuntimeError,  # torch.hub's: another hash, as of a file that was cut short
)
_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


def checkpoint_filter_fn(state_dict: Mapping[str, object], model: nn.Module) -> dict[str, Tensor]:
    """Rename a checkpoint to our own layout: the hook that timm's builder calls before loading.

    `model` is not needed: the names say which layout it is.
    """
    del model
    return convert_state_dict(state_dict)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, object],
    *,
    reset_head: bool = False,
) -> None:
    """Load weights into `model`, every entry or, after an error, none.

    Takes the official layout, OpenMMLab's, timm's and our own (the same thing), wrapped in
    ``state_dict``, ``model`` or an averaged (EMA) copy of them, which then is preferred. A floating point
    type other than the model's is converted. Any other network of timm takes its own weights.

    Args:
        model: Network to fill; stays on its device and in its type.
        source: A file (``.safetensors``, or ``.pth``, ``.pt``, ``.ckpt``, ``.bin``, ``.pth.tar``, which are
            only read with ``weights_only=True``), an http(s) URL of one (see :func:`fetch_pretrained`), or
            a state dict.
        reset_head: Ignore the checkpoint's classifier and keep the one that `model` has, for weights
            trained for other classes.

    Raises:
        UserError: The file cannot be read or would run code, or entries are missing, unexpected or of
            another shape or type (``num_batches_tracked`` may be missing). `model` is unchanged. The values
            themselves are not judged: weights of a run that diverged load with their NaN.
    """
    if isinstance(source, Mapping):
        label, checkpoint = "the state dict", source
    else:
        label, checkpoint = str(source), read_checkpoint(source)
    expected: dict[str, Tensor] = model.state_dict()
    if any(tensor.is_meta for tensor in expected.values()):
        raise UserError(f"{label}: the model is on the meta device; create it on another to load weights")
    try:
        # A model's own names need no translation, whatever they look like.
        inner = unwrap_state_dict(checkpoint)
        entries = check_tensors(inner) if inner.keys() <= expected.keys() else convert_state_dict(inner)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error

    # Converters that halve every tensor halve the counters too; no output depends on those.
    entries = {
        name: tensor
        for name, tensor in entries.items()
        if not (name.endswith(_COUNTER) and tensor.is_floating_point())
    }
    heads = _head_names(model)
    if reset_head:
        if not heads:
            raise UserError(
                f"{label}: {type(model).__name__} names no head to keep; leave {option('reset_head')} out"
            )
        entries = {name: tensor for name, tensor in entries.items() if _module(name) not in heads}
        expected = {name: tensor for name, tensor in expected.items() if _module(name) not in heads}
    needed = {name: t for name, t in expected.items() if name in entries or not name.endswith(_COUNTER)}
    remedy = words(
        "choose the --model and --in_chans that the weights were made for",
        "create the variant, in_chans and num_classes that the weights were made for",
    )
    check_fit(entries, needed, heads=heads, label=label, model=type(model).__name__, remedy=remedy)
    model.load_state_dict(entries, strict=False)  # without its head and counters that it lacks


def read_checkpoint(source: str | os.PathLike[str]) -> Mapping[str, object]:
    """Read the dict in a checkpoint file or behind an http(s) URL, without running any code from it.

    Raises:
        UserError: No such file, another kind of file, damaged, or a pickle that would run code.
    """
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        path = fetch_pretrained(text)
        try:
            return _read_file(path, label=text)
        except UserError:
            path.unlink(missing_ok=True)  # a cut file without a hash: fetch it again the next time
            raise
    if "://" in text:
        raise UserError(f"{text}: only http and https URLs are loaded; download the file and give its path")
    return _read_file(Path(os.path.expanduser(text)), label=text)


def fetch_pretrained(url: str, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the local copy of the weights at `url`; torch.hub downloads what is not in its cache.

    A file name that ends in ``-<first digits of its sha256>.<suffix>`` is checked, after the download and
    whenever the cached copy is used; a damaged copy is downloaded again. A URL without a hash gets its own
    folder in the cache, because two places may have files of one name.

    Args:
        url: http or https address of a checkpoint.
        cache_dir: Folder to keep it in; torch.hub's by default.

    Raises:
        UserError: Not reachable, not found, cut short, another hash, or the cache cannot be written.
    """
    path = pretrained_path(url, cache_dir=cache_dir)
    folder, name, digits = path.parent, path.name, _hash_in(path.name)
    timeout = socket.getdefaulttimeout()
    try:
        if path.is_file():
            if digits is None or _sha256(path).startswith(digits):
                return path
            _log.warning("%s is damaged (its hash is not %s) and is downloaded again", path, digits)
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        socket.setdefaulttimeout(_TIMEOUT)  # torch.hub sets none and would wait for a silent server for ever
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits, progress=sys.stderr.isatty())
        return path
    except _DOWNLOAD_ERRORS as error:
        raise UserError(
            f"{url}: cannot be downloaded ({reason_of(error)}); try again, or download {name} yourself and"
            f" give it {words('with --checkpoint', 'to load_checkpoint(model, path)')}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{url}: cannot keep the file at {path} ({error.strerror or error}); make room there or set "
            "TORCH_HOME to a folder that can be written"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def pretrained_path(url: str, *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return where `fetch_pretrained` keeps the weights at `url`, whether they are there or not.

    Raises:
        UserError: Not the address of a checkpoint.
    """
    name = _file_name(url)
    folder = Path(torch.hub.get_dir(), "checkpoints") if cache_dir is None else Path(cache_dir)
    if _hash_in(name) is None:
        folder /= hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder / name


def _hash_in(name: str) -> str | None:
    """Return the first digits of the hash that a file name ends in."""
    return match[1] if (match := _HASH.search(name)) else None


def _file_name(url: str) -> str:
    """Return the file name in the path of an http or https URL."""
    try:
        parts = urllib.parse.urlsplit(url if url.isprintable() else "")
    except ValueError as error:
        raise UserError(f"{url}: not a valid URL ({error})") from error
    name = parts.path.rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not parts.netloc or name in ("", ".", ".."):
        raise UserError(f"{url!r}: not the address of a checkpoint; give http(s)://host/path/file.pth")
    return name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_file(path: Path, *, label: str) -> Mapping[str, object]:
    if not os.path.isfile(path):  # unlike Path.is_file, never an OSError
        problem = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{label}: {problem}; give the path of a checkpoint (.safetensors or .pth)")
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", *_PICKLE_SUFFIXES):
        known = ", ".join((".safetensors", *_PICKLE_SUFFIXES))
        raise UserError(f"{label}: unknown kind of checkpoint {suffix!r}; known are {known}")
    try:
        checkpoint: object = load_file(path) if is_safetensors(path) else _unpickle(path)
    except PermissionError as error:
        raise UserError(f"{label}: may not be read; change its permissions") from error
    except Exception as error:  # a damaged file can fail in any way inside of the readers
        if refused := re.search(r"GLOBAL ((?:\w+\.)*\w+)\s", str(error)):
            raise UserError(
                f"{label}: refused, because loading it would run code ({refused[1]}); save the weights "
                "alone, by safetensors.torch.save_file(model.state_dict(), path)"
            ) from error
        raise UserError(
            f"{label}: damaged, cut short or no {suffix} checkpoint that can be read without running code "
            "from it; get the file again, or save model.state_dict() anew"
        ) from error
    if not isinstance(checkpoint, Mapping):
        raise UserError(
            f"{label}: holds {type(checkpoint).__name__}, not a state dict; save model.state_dict() instead"
        )
    return checkpoint


def is_safetensors(path: Path) -> bool:
    """Tell a safetensors file from a pickle by its first bytes, or where they say nothing by its suffix."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:
        start = b""
    pickled = start.startswith((b"PK", b"\x80"))
    return start[8:] == b"{" or (path.suffix.lower() == ".safetensors" and not pickled)


class _Inert:
    """Stands for an object of another class beside the weights; nothing of that class is run, or kept."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _inert(path: str) -> type[_Inert]:
    module, _, name = path.rpartition(".")
    return type(name, (_Inert,), {"__module__": module, "__qualname__": name})


# What training code keeps beside the weights: options, scores as numpy's numbers, paths, MMEngine's history.
_BESIDE_WEIGHTS: list[Any] = [
    _inert(path)
    for path in (
        "argparse.Namespace",
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
        *(f"numpy.{name}" for name in ("dtype", "ndarray")),
        *(f"pathlib.{inner}{name}" for inner in ("", "_local.") for name in ("PosixPath", "WindowsPath")),
        *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
        "mmengine.logging.history_buffer.HistoryBuffer",
        "builtins.getattr",  # by which methods of that history are named
    )
]


def _unpickle(path: Path) -> object:
    with torch.serialization.safe_globals(_BESIDE_WEIGHTS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on kinds of pickle that are refused anyway, in one line
        with path.open("rb") as file:  # of a path torch.load would trust the suffix
            return torch.load(file, map_location="cpu", weights_only=True)


def _head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that depend on the number of classes, as timm's pretrained_cfg names them."""
    config = getattr(model, "pretrained_cfg", None)
    names = config.get("classifier") if isinstance(config, Mapping) else None
    if names is None and hasattr(model, "forward_branches"):
        names = ("conv_head", "trans_head")  # a Conformer built without timm
    return (names,) if isinstance(names, str) else tuple(names or ())


def _module(name: str) -> str:
    """Return the name of the module that holds a parameter."""
    return name.rpartition(".")[0]


def check_fit(
    entries: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    label: str,
    model: str,
    remedy: str,
    heads: tuple[str, ...] = (),
) -> None:
    """Check that weights fit a model, name by name, in shape and kind of type.

    Args:
        entries: The weights.
        expected: The model's own state; may be on the meta device.
        label: What an error calls the weights.
        model: What an error calls the model.
        remedy: What an error advises.
        heads: Modules that depend on the number of classes.

    Raises:
        UserError: Some do not fit; the line lists them.
    """
    both = [name for name in expected if name in entries]
    shapes = [name for name in both if entries[name].shape != expected[name].shape]
    kinds = [name for name in both if not _convertible(entries[name], expected[name])]
    faults = {
        "missing": [name for name in expected if name not in entries],
        "unexpected": [name for name in entries if name not in expected],
        "of another shape": [
            f"{name} {tuple(entries[name].shape)} instead of {tuple(expected[name].shape)}" for name in shapes
        ],
        "of another type": [
            f"{name} {_describe(entries[name])} instead of {_describe(expected[name])}" for name in kinds
        ],
    }
    if not any(faults.values()):
        return
    have, want = (_classes(tensors, heads) for tensors in (entries, expected))
    wrong = [*faults["missing"], *faults["unexpected"], *shapes, *kinds]
    whole = all(entries[name].shape[:1] == (have,) for name in entries if _module(name) in heads)
    if have != want and whole and not kinds and all(_module(name) in heads for name in wrong):
        raise UserError(
            f"{label}: its head has {have} classes and the model's {want} ({some_names(wrong)});"
            f" {words('give --reset_head true', 'pass reset_head=True')} to keep the model's own head"
            + words("", f", or create the model with num_classes={have}")
        )
    text = ", ".join(f"{len(names)} {what} ({some_names(names)})" for what, names in faults.items() if names)
    raise UserError(f"{label}: does not fit {model}, entries {text}; {remedy}")


def _convertible(source: Tensor, target: Tensor) -> bool:
    """Tell whether the values of `source` can be copied to `target` without changing their meaning."""
    if source.is_meta or source.layout != torch.strided:
        return False
    return _kind(source.dtype) == _kind(target.dtype)


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    return "int" if dtype in _INTEGERS else str(dtype)


def _classes(tensors: Mapping[str, Tensor], heads: tuple[str, ...]) -> int:
    """Return the number of classes of the first head that is there, or 0."""
    sizes = (tensors[name].numel() for head in heads if (name := f"{head}.bias") in tensors)
    return next(sizes, 0)


def _describe(tensor: Tensor) -> str:
    """Return the type of a tensor as in an error: "float32", "float32 (meta)", "float32 (sparse_coo)"."""
    special = "meta" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    return dtype if special == "strided" else f"{dtype} ({special})"
