"""Every variant keeps the contract; beside it, what the variants are."""

import timm
import torch
from torch import Tensor

from conformer_vision import VARIANTS
from conformer_vision.commands.models import read_table
from contracts.model import ModelContract, images

PUBLISHED = {
    "conformer_tiny_patch16_224": 23_524_704,
    "conformer_small_patch16_224": 37_673_424,
    "conformer_small_patch32_224": 38_853_072,
    "conformer_base_patch16_224": 83_289_136,
}

# A quarter of the variants' widths, by as many heads.
TINY = {"channel_ratio": 0.25, "embed_dim": 96}
SMALL = {"channel_ratio": 1.0, "embed_dim": 96}
BASE = {"channel_ratio": 1.5, "embed_dim": 144}
NANO = {"channel_ratio": 0.375, "embed_dim": 40}


class TestTiny(ModelContract):
    name = "conformer_tiny_patch16_224"
    options = TINY


class TestTiny64(ModelContract):
    name = "conformer_tiny_patch8_64"
    options = TINY


class TestTiny32(ModelContract):
    name = "conformer_tiny_patch4_32"
    options = TINY


class TestSmall(ModelContract):
    name = "conformer_small_patch16_224"
    options = SMALL


class TestSmall32(ModelContract):
    name = "conformer_small_patch32_224"
    options = SMALL


class TestBase(ModelContract):
    name = "conformer_base_patch16_224"
    options = BASE


class TestNano(ModelContract):
    name = "conformer_nano_patch16_224"
    options = NANO


class TestNano64(ModelContract):
    name = "conformer_nano_patch8_64"
    options = NANO


class TestNano32(ModelContract):
    name = "conformer_nano_patch4_32"
    options = NANO


def test_every_variant_is_under_contract() -> None:
    assert {contract.name for contract in ModelContract.__subclasses__()} == VARIANTS.keys()


def test_parameter_counts() -> None:
    counts = {row["name"]: row["parameters"] for row in read_table()}  # checked in test_models
    assert PUBLISHED.items() <= counts.items()
    assert all(counts[name] <= 8_000_000 for name in VARIANTS if "nano" in name)


def test_published_variants_start_as_published() -> None:
    assert {name for name, config in VARIANTS.items() if not config.zero_init_last} == PUBLISHED.keys()


def test_forms_for_small_images_keep_64_patch_tokens() -> None:
    for name, size in (("conformer_nano_patch4_32", 32), ("conformer_tiny_patch8_64", 64)):
        model = timm.create_model(name).eval()
        seen: list[Tensor] = []
        model.blocks[-1].register_forward_hook(lambda *call, seen=seen: seen.append(call[2][1]))
        with torch.no_grad():
            model(images(1, 3, size, size))
        assert seen[0].shape[1] == 1 + 8 * 8
