"""The scripts behind docs/results.md: runs are made once and stored, and tables come from what is stored."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image

import learning
import robustness
import tables
from ablations import NANO, Uncoupled
from command_line import NETWORK
from conformer_vision.models.blocks import Bottleneck
from conformer_vision.weights import load_model
from release import release
from take_images import take_images

NAMES = ["n00000001 red", "n00000002 green", "n00000003 blue"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with ``train.parquet`` of ten noisy images in each of three colours."""
    rng = np.random.default_rng(0)
    labels = [label for label in range(3) for _ in range(10)]
    noise = rng.integers(0, 128, (30, 32, 32, 3), dtype=np.uint8)
    images = [
        Image.fromarray(pixels + np.eye(3, dtype=np.uint8)[label] * 127)
        for pixels, label in zip(noise, labels, strict=True)
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    (tmp_path / "data").mkdir()
    part = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    part.to_parquet(tmp_path / "data" / "train.parquet")
    return tmp_path / "data"


def experiment(**changes: object) -> learning.Experiment:
    options = {
        "data": "train.parquet",
        "recipe": "small-images",
        "max_steps": 2,
        "batch_size": 8,
        "report": False,
        "device": "cpu",
        "progress": "plain",
        "model_kwargs": NETWORK,
    }
    return learning.Experiment("table", "A name", 1, options | changes, test="train.parquet", moved=True)


def test_a_run_is_made_once_stored_and_tabulated(data: Path, tmp_path: Path) -> None:
    chosen = experiment()
    result = learning.run(chosen, data, tmp_path / "runs", tmp_path / "results")
    stored = tmp_path / "results" / "table--a-name--1.json"
    assert json.loads(stored.read_text()) == result
    assert result["samples"] == 30
    assert result["config"]["seed"] == 1
    assert result["config"]["lr"] == 2e-3, "of the recipe"
    assert result["curves"][-1]["step"] == 2
    assert set(result["moved"]) == set(robustness.MOVEMENTS)
    assert result["moved"]["as they are"] == pytest.approx(result["top1"]["fused"])
    assert str(tmp_path) not in stored.read_text(), "where it was made says nothing"
    larger = replace(chosen, name="Larger", test_size=40)
    measured = learning.store(larger, tmp_path / "runs" / chosen.slug, data, tmp_path / "larger")
    assert (measured["test_size"], measured["config"]["input_size"]) == (40, [32, 32])
    assert measured["nll"] != result["nll"]
    shutil.rmtree(tmp_path / "runs")
    assert learning.run(chosen, data, tmp_path / "runs", tmp_path / "results") == result
    assert not (tmp_path / "runs").exists()

    other = result | {"seed": 2, "top1": dict.fromkeys(result["top1"], 0.5), "moved": result["moved"]}
    (tmp_path / "results" / "table--a-name--2.json").write_text(json.dumps(other))
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n<!-- table: table -->\nold\n<!-- end -->\nB\n<!-- moved: table -->\n<!-- end -->\nC\n"
    )
    assert tables.write_tables(page, tmp_path / "results") == ["table table", "moved table"]
    text = page.read_text()
    mean = 100 * (result["top1"]["fused"] + 0.5) / 2
    assert f"**{mean:.1f} ± " in text
    assert "old" not in text
    assert [line for line in text.splitlines() if len(line) == 1] == ["B", "C"]
    page.write_text("<!-- table: none -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="holds no run"):
        tables.write_tables(page, tmp_path / "results")


def test_the_tables_of_the_page_are_the_stored_ones(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    shutil.copy(tables.DOCS, page)
    assert tables.write_tables(page)
    assert page.read_text(encoding="utf-8") == tables.DOCS.read_text(encoding="utf-8")


def test_experiments_can_be_configured(tmp_path: Path) -> None:
    experiments = learning.read_experiments()
    assert len({e.slug for e in experiments}) == len(experiments)
    for each in experiments:
        assert each.config(tmp_path, tmp_path).data.seed == each.seed


def test_taking_classes_and_shares(data: Path, tmp_path: Path) -> None:
    source, target = str(data / "train.parquet"), tmp_path / "part.parquet"
    assert take_images(source, target, classes=[NAMES[2], NAMES[0]], share=0.5) == 10
    part = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path))
    assert part.features["label"].names == [NAMES[2], NAMES[0]]
    assert sorted(part["label"]) == [0] * 5 + [1] * 5
    for row in part:
        colour = np.asarray(row["image"]).mean((0, 1)).argmax()
        assert colour == (2, 0)[row["label"]]
    with pytest.raises(ValueError, match="no class 'purple'"):
        take_images(source, target, classes=["purple"])
    with pytest.raises(ValueError, match="no file is called"):
        take_images(str(tmp_path / "none-*.parquet"), target)


def test_taking_so_many_of_every_class(data: Path, tmp_path: Path) -> None:
    """Fewer are part of more, and those that are passed over are others."""
    source = str(data / "train.parquet")

    def taken(**options: int) -> list[bytes]:
        target = tmp_path / "part.parquet"
        count = take_images(source, target, **options)  # type: ignore[arg-type]
        part = datasets.Dataset.from_parquet(str(target), cache_dir=str(tmp_path / str(options)))
        assert len(part) == count == options["per_class"] * len(NAMES)
        assert set(Counter(part["label"]).values()) == {options["per_class"]}
        return [np.asarray(row["image"]).tobytes() for row in part]

    few, more, others = taken(per_class=2), taken(per_class=5), taken(per_class=3, skip=2)
    assert set(few) < set(more) == set(few) | set(others)
    assert not set(few) & set(others)
    with pytest.raises(ValueError, match="images of the class"):
        taken(per_class=1000)


def test_weights_as_they_ship(data: Path, tmp_path: Path) -> None:
    learning.run(experiment(max_steps=1), data, tmp_path / "runs", tmp_path / "results")
    source = tmp_path / "runs" / "table--a-name--1" / "last.safetensors"
    release(source, tmp_path / "larger.safetensors", input_size=40)
    assert load_model(tmp_path / "larger.safetensors")[1].input_size == (3, 40, 40)
    size = release(source, tmp_path / "small.safetensors")
    assert size < 0.6 * source.stat().st_size
    model, spec = load_model(source)
    half, half_spec = load_model(tmp_path / "small.safetensors")
    assert half_spec.labels == ("red", "green", "blue")
    assert half_spec.classes == spec.classes == tuple(NAMES)
    for (name, tensor), (_, rounded) in zip(
        model.state_dict().items(), half.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(rounded, tensor, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("branches", [("conv",), ("trans",), ("conv", "trans")])
def test_branches_without_coupling(branches: tuple[str, ...]) -> None:
    """Every parameter has a gradient; the mean of two heads is the answer, and neither sees the other."""
    torch.manual_seed(0)
    model = Uncoupled(NANO, branches, num_classes=4).train()
    x = torch.randn(4, 3, 32, 32)
    out = model(x)
    logits = out if isinstance(out, tuple) else (out,)
    assert [tuple(head.shape) for head in logits] == [(4, 4)] * len(branches)
    logits[0].sum().backward(retain_graph=True)
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    trans = {"patch_embed", "cls_token", "trans", "norm", "trans_head"}
    assert reached == {"stem"} | ({"conv", "conv_head"} if branches[0] == "conv" else trans)
    sum(head.sum() for head in logits).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    assert model(x).shape == (4, 4)


@pytest.mark.parametrize("options", [{}, {"zero_init_last": True}, {"zero_init_last": False}])
def test_compared_networks_start_alike(options: dict[str, bool]) -> None:
    """Bottlenecks start as their shortcuts in all of them, or in none."""
    start = 1.0 if options.get("zero_init_last") is False else 0.0
    for name in ("conformer_nano_patch8_64", "ablation_conv_nano", "ablation_uncoupled_nano"):
        bottlenecks = [m for m in timm.create_model(name, **options).modules() if isinstance(m, Bottleneck)]
        assert bottlenecks
        assert {float(scale) for m in bottlenecks for scale in m.bn3.weight.detach()} == {start}
