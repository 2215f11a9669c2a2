"""`pretrained=True` from the download to the last bit, against a server on this machine."""

import hashlib
import io
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conformer_vision import load_checkpoint
from conformer_vision.errors import UserError
from conformer_vision.models import checkpoints
from conformer_vision.models.checkpoints import fetch_pretrained, to_openmmlab
from conformer_vision.models.variants import VARIANTS
from weights_server import (
    Handler,
    Respond,
    Server,
    cut_chunks,
    damaged,
    half,
    nonsense,
    reset,
    unavailable,
    whole,
)

NAME = "conformer_nano_patch4_32"
SMALL: dict[str, Any] = {
    "channel_ratio": 0.25,
    "embed_dim": 8,
    "num_heads": 1,
    "depths": (2, 1, 2),
    "stem_width": 8,
}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder where torch.hub, and so fetch_pretrained, keeps checkpoints."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch_home" / "hub" / "checkpoints"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def refused(url: str, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        fetch_pretrained(url, **kwargs)
    line = str(caught.value)
    assert "\n" not in line and url in line
    return line


# ---- the weights -----------------------------------------------------------------------------------


def make_weights(variant: str = NAME, **kwargs: Any) -> dict[str, Tensor]:
    """Values that no fresh model has, by own names."""
    weights = timm.create_model(variant, **kwargs).state_dict()
    generator = torch.Generator().manual_seed(5)
    for name, tensor in weights.items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        else:
            tensor.fill_(3)
    return weights


def openmmlab_file(weights: dict[str, Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save({"meta": {"mmcls_version": "0.20.0"}, "state_dict": to_openmmlab(weights)}, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return make_weights(num_classes=1000, **SMALL)


@pytest.fixture(scope="module")
def body(weights: dict[str, Tensor]) -> bytes:
    return openmmlab_file(weights)


@pytest.fixture
def url(server: Server, cache: Path, body: bytes) -> str:
    """Where the weights are served; nothing is in the cache."""
    return server.add(body)


def pretrained(url: str, **kwargs: Any) -> nn.Module:
    return timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay={"url": url}, **SMALL, **kwargs)


def assert_same(model: nn.Module, weights: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> None:
    """Every entry of the model outside of the modules `but` has the bits of `weights`."""
    loaded = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(but)}
    assert loaded.keys() == {name for name in weights if not name.startswith(but)}
    for name, tensor in loaded.items():
        assert torch.equal(tensor, weights[name]), name


def test_the_published_addresses() -> None:
    place = "https://download.openmmlab.com/mmclassification/v0/conformer/"
    published = {
        "tiny_patch16": "conformer-tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth",
        "small_patch16": "conformer-small-p16_3rdparty_8xb128_in1k_20211206-3065dcf5.pth",
        "small_patch32": "conformer-small-p32_8xb128_in1k_20211206-947a0816.pth",
        "base_patch16": "conformer-base-p16_3rdparty_8xb128_in1k_20211206-bfdf8637.pth",
    }
    addresses = {name: timm.get_pretrained_cfg(name).url for name in VARIANTS}
    assert {name: url for name, url in addresses.items() if url} == {
        f"conformer_{name}_224": place + file for name, file in published.items()
    }
    for name in published:
        cfg = timm.get_pretrained_cfg(f"conformer_{name}_224")
        assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (cfg.input_size, cfg.interpolation, cfg.crop_mode) == ((3, 224, 224), "bicubic", "center")
        assert cfg.input_size[1] / cfg.crop_pct == 256  # resize of the short edge
        assert cfg.license == "apache-2.0" and cfg.num_classes == 1000


def test_the_cached_file_is_used_without_a_request(
    url: str, server: Server, cache: Path, weights: dict[str, Tensor], body: bytes
) -> None:
    for _ in range(3):
        assert_same(pretrained(url), weights)
    assert len(server.requests) == 1
    assert files_in(cache) == [url.rpartition("/")[2]]
    assert (cache / url.rpartition("/")[2]).read_bytes() == body


@pytest.mark.parametrize("damage", ["empty", "short", "flipped"])
def test_a_broken_cached_file_is_downloaded_again(
    url: str,
    cache: Path,
    weights: dict[str, Tensor],
    body: bytes,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cached = cache / url.rpartition("/")[2]
    cache.mkdir(parents=True)
    flipped = bytes([body[0] ^ 1]) + body[1:]
    cached.write_bytes({"empty": b"", "short": body[:-100], "flipped": flipped}[damage])
    with caplog.at_level(logging.WARNING, "conformer_vision"):
        assert_same(pretrained(url), weights)
    assert str(cached) in caplog.text
    assert cached.read_bytes() == body


def test_a_broken_cached_file_without_network_is_not_loaded(
    url: str, server: Server, tmp_path: Path, body: bytes
) -> None:
    cached = tmp_path / url.rpartition("/")[2]
    cached.write_bytes(body[:-100])
    server.respond = unavailable
    assert "503" in refused(url, cache_dir=tmp_path)
    assert files_in(tmp_path) == [cached.name]  # what was there is not made worse


def test_another_number_of_classes(url: str, weights: dict[str, Tensor]) -> None:
    heads = ("conv_head", "trans_head")
    five = pretrained(url, num_classes=5)
    assert five.conv_head.weight.shape == (5, 64) and five.trans_head.weight.shape == (5, 8)
    with pytest.raises(AssertionError):  # the two heads are fresh
        assert_same(five, weights)
    body_weights = {name: tensor for name, tensor in weights.items() if not name.startswith(heads)}
    assert_same(five, body_weights, but=heads)
    assert_same(pretrained(url, num_classes=0), body_weights)
    assert five.conv_head.bias.count_nonzero() == 0


def test_grey_images(url: str, weights: dict[str, Tensor]) -> None:
    model = pretrained(url, in_chans=1)
    assert_same(model, weights, but=("stem.conv",))
    summed = weights["stem.conv.weight"].sum(1, keepdim=True)  # a grey image as three equal channels
    torch.testing.assert_close(model.stem.conv.weight.detach(), summed)


def test_features(url: str) -> None:
    full = pretrained(url).eval()
    features = pretrained(url, features_only=True, out_indices=(0, 2, 3)).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = full.forward_intermediates(x, indices=[0, 2, 3], intermediates_only=True)
        for got, wanted in zip(features(x), expected, strict=True):
            assert torch.equal(got, wanted) and got.isfinite().all()


def test_cache_dir_of_timm(url: str, cache: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    assert_same(pretrained(url, cache_dir=tmp_path / "mine"), weights)
    assert files_in(tmp_path / "mine") == [url.rpartition("/")[2]] and not cache.exists()


def test_load_checkpoint_takes_an_address(url: str, weights: dict[str, Tensor]) -> None:
    model = timm.create_model(NAME, num_classes=1000, **SMALL)
    load_checkpoint(model, url)
    assert_same(model, weights)
    with pytest.raises(UserError, match="404") as caught:
        load_checkpoint(model, url + "x")
    assert "\n" not in str(caught.value)


# ---- the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("respond", "reason"),
    [
        (half, "invalid hash value"),
        (reset, "cannot be downloaded"),
        (cut_chunks, "cannot be downloaded"),
        (damaged, "invalid hash value"),
        (unavailable, "503"),
        (nonsense, "cannot be downloaded"),
    ],
)
def test_a_bad_answer_is_one_line_and_leaves_nothing(
    url: str, server: Server, cache: Path, respond: Respond, reason: str
) -> None:
    server.respond = respond
    with pytest.raises(UserError) as caught:
        pretrained(url)
    line = str(caught.value)
    assert reason in line and url in line and "\n" not in line
    assert "try again" in line and "load_checkpoint" in line
    assert files_in(cache) == []

    server.respond = whole  # and the next time it works
    assert pretrained(url) is not None


def test_a_file_of_another_name_and_none(server: Server, cache: Path, body: bytes) -> None:
    url = server.add(body, "conformer-tiny-p16_3rdparty_8xb128_in1k_20211206-f6860372.pth")
    line = refused(url)
    assert hashlib.sha256(body).hexdigest()[:8] in line and "f6860372" in line
    assert "404" in refused(f"http://127.0.0.1:{server.server_address[1]}/none-01234567.pth")
    assert files_in(cache) == []


def test_no_network(cache: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens here
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x-01234567.pth"
        with pytest.raises(UserError, match="refused") as caught:
            pretrained(url)
    assert "\n" not in str(caught.value) and url in str(caught.value)
    assert files_in(cache) == []


def test_no_such_host(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(UserError, match="Name or service not known") as caught:
        timm.create_model("conformer_tiny_patch16_224", pretrained=True)
    assert "download.openmmlab.com" in str(caught.value) and "\n" not in str(caught.value)
    assert files_in(cache) == []


def test_silence(server: Server, tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def stall(handler: Handler, body: bytes) -> None:
        half(handler, body)
        handler.wfile.flush()
        released.wait(20)

    server.respond = stall
    monkeypatch.setattr(checkpoints, "_TIMEOUT", 0.2)
    try:
        assert "timed out" in refused(server.add(body), cache_dir=tmp_path)
    finally:
        released.set()
    assert files_in(tmp_path) == []
    assert socket.getdefaulttimeout() is None


def test_a_cut_file_without_a_hash_is_not_kept(
    server: Server, cache: Path, weights: dict[str, Tensor], body: bytes
) -> None:
    url = server.add(body, "weights.pth")
    server.respond = half
    model = timm.create_model(NAME, num_classes=1000, **SMALL)
    with pytest.raises(UserError, match="cut short"):
        load_checkpoint(model, url)
    assert files_in(cache) == []
    server.respond = whole
    load_checkpoint(model, url)
    assert_same(model, weights)


NO_ADDRESSES = ["", "weights.pth", "ftp://host/x.pth", "file:///etc/passwd", "http:///x.pth", "http://host/"]
NO_ADDRESSES += ["http://host", "http://host/..", "http://[::1/x.pth", "http://host:port/x.pth"]
NO_ADDRESSES += ["http://a..b/x.pth"]
STARTS = st.sampled_from(["http://", "https://", "http://host/", ""])
TEXTS = st.text(alphabet="ab/.:?#%@[]\\ \n\0ä-0", max_size=12)


def _no_connection(*args: object, **kwargs: object) -> None:
    raise OSError("nothing is asked here")


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(NO_ADDRESSES) | st.tuples(STARTS, TEXTS).map("".join))
def test_any_text_as_address_is_one_line(tmp_path_factory: pytest.TempPathFactory, url: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "addresses"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(socket, "create_connection", _no_connection)
        patch.setattr(socket, "getaddrinfo", _no_connection)
        fetch_pretrained(url, cache_dir=folder)
    assert "\n" not in str(caught.value)
    assert files_in(folder) == []


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, body: bytes) -> None:
    url = server.add(body)
    (tmp_path / "a_file").touch()
    for folder in (tmp_path / "a_file", tmp_path / "a_file" / "below", tmp_path / ("long" * 99)):
        assert "TORCH_HOME" in refused(url, cache_dir=folder)
    (tmp_path / url.rpartition("/")[2]).mkdir()
    assert "TORCH_HOME" in refused(url, cache_dir=tmp_path)
    assert files_in(tmp_path) == ["a_file"]


def test_names_without_a_hash_are_kept_apart(server: Server, tmp_path: Path) -> None:
    names = ("a/model.pth", "b/model.pth", "c/model-20211206.pth", "c/model-best.pth")
    for name in names:
        url = server.add(name.encode(), name)
        for _ in range(2):
            assert fetch_pretrained(url, cache_dir=tmp_path).read_bytes() == name.encode()
    assert len(server.requests) == len(names)
    assert (
        fetch_pretrained(server.add(b"x", "q-{hash}.pth") + "?download=1", cache_dir=tmp_path).name[:2]
        == "q-"
    )
