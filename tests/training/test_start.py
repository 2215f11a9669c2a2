"""Where a training starts: the weights at hand, without a network and with one."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from command_line import run
from conformer_vision.errors import UserError
from conformer_vision.training import TrainConfig, start, train
from conformer_vision.training.recipe import read_config
from conformer_vision.training.start import Start, find_missing, settle
from conformer_vision.weights import load

Tiny = Callable[..., TrainConfig]
TI, S, NANO = "conformer_tiny_patch16_224", "conformer_small_patch16_224", "conformer_nano_patch8_64"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address is known, the cache is empty, and there is no accelerator."""
    monkeypatch.setattr(start, "_unreachable", lambda url: "no network")
    monkeypatch.setattr(start, "_has_accelerator", lambda hardware: False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(start, "try_to_load_from_cache", lambda *_: None)


def settled(**options: Any) -> Start:
    return settle(TrainConfig.from_options(data="photos", **options))


def cache(name: str, tmp_path: Path) -> None:
    """Put a file where the published weights of a model are kept."""
    url = str(timm.get_pretrained_cfg(name).url)  # type: ignore[union-attr]
    path = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_without_a_network_the_bundled_weights() -> None:
    found = settled()
    assert (found.config.model.model, found.config.model.pretrained) == (NANO, True)
    assert (found.config.optimizer.lr, found.config.optimizer.layer_decay) == (2e-3, 0.9)
    assert found.weights == f"{NANO}.tiny_imagenet_20, bundled with the package"
    assert found.note == f"the published weights of {TI} cannot be downloaded: no network"


@pytest.mark.parametrize(("cached", "accelerator", "chosen"), [
    ([TI], False, TI), ([S], False, S), ([TI, S], False, TI), ([TI, S], True, S), ([TI], True, TI),
])  # fmt: skip
def test_cached_weights_of_imagenet_come_first(
    cached: list[str], accelerator: bool, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_has_accelerator", lambda hardware: accelerator)
    monkeypatch.setattr(start, "fetch_pretrained", lambda url: None)
    for name in cached:
        cache(name, tmp_path)
    found = settled()
    assert (found.config.model.model, found.config.model.pretrained, found.note) == (chosen, True, "")
    assert (found.config.optimizer.lr, found.config.optimizer.layer_decay) == (5e-4, 0.75)


def test_damaged_weights_in_the_cache_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hash is wrong, and they cannot be downloaded again."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    cache(TI, tmp_path)
    found = settled()
    assert found.config.model.model == NANO
    assert "no network" in found.note


def test_weights_of_imagenet_are_downloaded_if_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(start, "_unreachable", lambda url: "")
    monkeypatch.setattr(start, "fetch_pretrained", fetched.append)
    assert settled().config.model.model == TI
    assert [url.rpartition("/")[2].startswith("conformer-tiny-p16") for url in fetched] == [True]
    assert capsys.readouterr().out == f"downloading the ImageNet weights of {TI}\n"

    def breaks_off(url: str) -> Path:
        raise UserError("the connection broke off")

    monkeypatch.setattr(start, "fetch_pretrained", breaks_off)
    found = settled()
    assert (found.config.model.model, found.note) == (NANO, "the connection broke off")
    several = settle(TrainConfig.from_options(data="photos"), download=False)
    assert several.config.model.model == NANO, "processes that train together come to the same"


def test_from_scratch_is_asked_for() -> None:
    found = settled(pretrained=False)
    assert (found.config.model.model, found.config.model.pretrained) == (start.SCRATCH, False)
    assert (found.config.optimizer.lr, found.config.optimizer.layer_decay) == (1e-3, None)
    assert (found.weights, found.note) == ("none, training from scratch", "")
    assert settled(pretrained=False, model=TI).config.model.model == TI


@pytest.mark.parametrize("name", [NANO, TI, "resnet18", "conformer_nano_patch4_32"])
def test_a_named_model_starts_from_its_weights_where_they_are_at_hand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = settled(model=name)
    assert found.config.model.model == name
    assert found.config.model.pretrained == (name == NANO)
    assert bool(found.note) == (name != NANO)
    monkeypatch.setattr(start, "_unreachable", lambda url: "")
    assert settled(model=name).config.model.pretrained == (name != "conformer_nano_patch4_32")


def test_weights_that_are_asked_for_must_exist() -> None:
    assert settled(model=TI, pretrained=True).config.model.pretrained, "building it says what is wrong"
    assert settled(pretrained=True).config.model.model == NANO
    with pytest.raises(UserError, match="pretrained: conformer_nano_patch4_32 has no published weights"):
        settled(model="conformer_nano_patch4_32", pretrained=True)
    with pytest.raises(UserError, match="model 'conformer_nan' is unknown; did you mean"):
        settled(model="conformer_nan")


def test_changed_networks_start_from_scratch() -> None:
    for kwargs, pretrained in (
        ({"depths": [2, 1, 2]}, False),
        ({"upsample": "bilinear"}, True),
        ({"no": 1}, False),
    ):
        found = settled(model=NANO, model_kwargs=kwargs)
        assert (found.config.model.pretrained, bool(found.note)) == (pretrained, not pretrained), kwargs
    found = settled(model_kwargs={"depths": [2, 1, 2]})
    assert (found.config.model.model, found.config.model.pretrained) == (start.SCRATCH, False)


def test_rates_that_are_given_stay() -> None:
    config = settled(lr=1e-4, layer_decay=0.5).config
    assert (config.optimizer.lr, config.optimizer.layer_decay) == (1e-4, 0.5)
    with pytest.raises(UserError, match=r"min_lr 0\.01 is above lr 0\.002"):
        settled(min_lr=0.01)


def test_model_of_a_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    """A weights file, a run, its checkpoint; with other classes."""
    folder = train(tiny(max_steps=1, output=str(tmp_path / "run")))
    for given in (folder, folder / "best.safetensors", folder / "last.ckpt"):
        config = settled(checkpoint=str(given), reset_head=True).config
        assert (config.model.model, config.model.pretrained) == (NANO, False)
        assert config.model.model_kwargs == tiny().model.model_kwargs
        assert config.optimizer.lr == 2e-3
    changes = {"model": None, "model_kwargs": {}, "pretrained": None, "data": "digits", "max_steps": 1}
    other = train(tiny(**changes, checkpoint=str(folder), reset_head=True, output=str(tmp_path / "next")))
    kept = read_config(other / "config.yaml")
    assert kept.model.checkpoint == str(folder / "best.safetensors")
    for given, line in ((tmp_path, "holds no weights"), ("https://host/weights.pth", "name its model too")):
        with pytest.raises(UserError, match=line):
            settled(checkpoint=str(given))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server that has one file."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/weights.pth" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_network_has_two_seconds(
    silent_server: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(start, "_SECONDS", 0.3)
    assert start._unreachable(f"{server}/weights.pth") == ""
    assert "404" in start._unreachable(f"{server}/other.pth")
    assert start._unreachable("http://127.0.0.1:9/weights.pth")
    began = time.monotonic()
    assert start._unreachable(silent_server)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    assert start._unreachable("http://unknown.invalid/weights.pth") == "no answer from the network"
    assert time.monotonic() - began < 3


def test_offline_by_the_hubs_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_unreachable", lambda url: "")
    assert find_missing("resnet18", download=True) == ""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_missing("resnet18", download=True).endswith("HF_HUB_OFFLINE is set")


def test_the_first_line_of_the_readme(images: Path, tmp_path: Path) -> None:
    """One step of it; what was decided is kept, and the weights are the bundled ones."""
    output = tmp_path / "run"
    options = ["--max_steps=1", "--batch_size=8", "--workers=0", "--device=cpu", "--report=false"]
    options += ["--lr=1e-9", "--min_lr=0"]  # so that the weights stay what they were
    done = run("train", "--data", images, "--output", output, *options)
    assert (done.status, done.err) == (0, "")
    assert f"initial weights: {NANO}.tiny_imagenet_20, bundled with the package" in done.out
    assert f"next: conformer-vision predict {output} IMAGE" in done.out
    kept = read_config(output / "config.yaml")
    assert (kept.model.model, kept.model.pretrained, kept.model.image_size) == (NANO, True, (64, 64))
    assert (kept.optimizer.layer_decay, kept.optimizer.ema_decay, kept.schedule.epochs) == (0.9, 0.998, 15)
    weights = load(output).model.state_dict()
    bundled = load(NANO).model.state_dict()
    assert torch.allclose(weights["cls_token"], bundled["cls_token"], atol=1e-6)
