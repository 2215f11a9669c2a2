"""The mean of several networks: exact, differentiable, stored in one file, and exported as one graph."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError
from conformer_vision.export import write_network
from conformer_vision.export.formats import FORMATS
from conformer_vision.export.run import open_written
from conformer_vision.inference.runtimes import open_runtime
from conformer_vision.inference.runtimes.network import heads
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.spec import ModelSpec
from conformer_vision.weights import load_model, save_model
from exports import FILES, SPEC, WITH_EXPORTS, shared_graphs

MEMBERS = 2
JOINED = replace(SPEC, members=MEMBERS, temperature=1.5)


def conformer(seed: int) -> Conformer:
    torch.manual_seed(seed)
    model = timm.create_model(SPEC.model, num_classes=SPEC.num_classes, **SPEC.model_kwargs)
    assert isinstance(model, Conformer)
    with torch.no_grad():
        for _ in range(3):  # running statistics that fit the activations
            model.train()(torch.randn(8, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def members() -> list[Conformer]:
    return [conformer(seed) for seed in range(MEMBERS)]


@pytest.fixture(scope="module")
def batch() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def loop(members: list[Conformer], batch: Tensor) -> dict[str, Tensor]:
    """The mean of the logits of each head, written plainly."""
    found = {}
    for head in ("conv", "trans"):
        total = getattr(members[0].forward_branches(batch), head)
        for member in members[1:]:
            total = total + getattr(member.forward_branches(batch), head)
        found[head] = total / len(members)
    total = members[0](batch)
    for member in members[1:]:
        total = total + member(batch)
    return found | {"fused": total / len(members)}


def test_the_mean_is_that_of_a_loop(members: list[Conformer], batch: Tensor) -> None:
    ensemble = Ensemble(members)
    expected = loop(members, batch)
    with torch.no_grad():
        for head, logits in heads(ensemble, batch).items():
            assert torch.equal(logits, expected[head]), head
        assert torch.equal(ensemble(batch), expected["fused"])
        folded = heads(ensemble.fold(), batch)
    for head, logits in folded.items():
        torch.testing.assert_close(logits, expected[head], rtol=1e-4, atol=1e-4)
    assert not ensemble.folded and ensemble.fold().folded and ensemble.num_classes == 10


def test_networks_with_one_head(batch: Tensor) -> None:
    members: list[nn.Module] = [timm.create_model("resnet10t", num_classes=4).eval() for _ in range(3)]
    with torch.no_grad():
        found = heads(Ensemble(members), batch)
        assert found.keys() == {"fused"}
        assert torch.equal(found["fused"], (members[0](batch) + members[1](batch) + members[2](batch)) / 3)


def test_gradients_reach_every_member(batch: Tensor) -> None:
    """Each has a share of 1/N of those that it would have alone."""
    ensemble = Ensemble([conformer(seed).double() for seed in range(MEMBERS)])
    alone = [conformer(seed).double() for seed in range(MEMBERS)]
    ensemble(batch.double())[:, 1].sum().backward()
    for member, other in zip(ensemble.members, alone, strict=True):
        other(batch.double())[:, 1].sum().backward()
        for own, expected in zip(member.parameters(), other.parameters(), strict=True):
            assert own.grad is not None and expected.grad is not None
            torch.testing.assert_close(own.grad * MEMBERS, expected.grad)


@pytest.fixture(scope="module")
def stored(members: list[Conformer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ensemble") / "ensemble.safetensors"
    save_model(Ensemble(members), JOINED, path)
    return path


def test_one_file_holds_it(stored: Path, members: list[Conformer], batch: Tensor) -> None:
    model, spec = load_model(stored)
    assert spec == JOINED and ModelSpec.from_json(spec.to_json()) == JOINED
    assert isinstance(model, Ensemble) and not model.training
    with torch.no_grad():
        assert torch.equal(model(batch), loop(members, batch)["fused"])


def test_threads_share_it(stored: Path, members: list[Conformer], batch: Tensor) -> None:
    runtime = open_runtime(stored, device="cpu")
    batches = [batch.numpy() * np.float32(scale) for scale in (0.5, 1.0, 1.5, 2.0)] * 2
    alone = [runtime(each) for each in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(runtime, batches))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(one[head], other[head]) for head in one)
    for head, logits in loop(members, batch).items():
        np.testing.assert_allclose(runtime(batch.numpy())[head], logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("members", [0, -1, 101, 2.0, True, "2"])
def test_impossible_numbers_of_members(members: object) -> None:
    with pytest.raises(UserError, match="members must be from 1 to 100"):
        replace(SPEC, members=members)  # type: ignore[arg-type]


class TestExports:
    pytestmark = WITH_EXPORTS

    def test_one_graph(self, members: list[Conformer], batch: Tensor, tmp_path: Path) -> None:
        """In every format, with the mean of the logits of each head inside."""
        expected = loop(members, batch)
        with shared_graphs():
            for name, file in FILES.items():
                write_network(Ensemble(members), JOINED, tmp_path / file, format=name)
                for head, logits in open_written(tmp_path / file, FORMATS[name])(batch.numpy()).items():
                    np.testing.assert_allclose(logits, expected[head].detach(), rtol=1e-4, atol=1e-4)
                if name != "torch-export":
                    assert open_runtime(tmp_path / file).spec.members == MEMBERS

    def test_hf_is_refused(self, members: list[Conformer], tmp_path: Path) -> None:
        with pytest.raises(UserError, match="format hf holds one network, and this is an ensemble of 2"):
            write_network(Ensemble(members), JOINED, tmp_path / "hf", format="hf")
        assert not (tmp_path / "hf").exists()
