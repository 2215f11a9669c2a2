"""Names of entries: from every published layout to our own, and back."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from conformer_vision.errors import UserError
from conformer_vision.models.checkpoints import (
    checkpoint_filter_fn,
    convert_state_dict,
    to_official,
    to_openmmlab,
)
from small_checkpoints import DONOR, LAYOUTS, OWN_NAMES, make_model, quick, same

PUBLISHED = ("tiny_patch16", "small_patch16", "small_patch32", "base_patch16")
REFERENCE_LAYOUTS = {"official": to_official, "mmpretrain": to_openmmlab}

# ---- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("layout", REFERENCE_LAYOUTS)
def test_every_published_entry_has_its_place(shared_dir: Path, layout: str, variant: str) -> None:
    keys = json.loads((shared_dir / "parity" / f"keys_{layout}_{variant}.json").read_text())
    with torch.device("meta"):
        own = timm.create_model(f"conformer_{variant}_224").state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}

    entries = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    converted = convert_state_dict(entries)
    assert {name: tuple(tensor.shape) for name, tensor in converted.items()} == wanted
    assert len(converted) == len(entries)  # one to one

    shuffled = list(entries)
    random.Random(variant).shuffle(shuffled)
    places = dict(zip(entries, converted, strict=True))
    again = convert_state_dict({name: entries[name] for name in shuffled})
    assert list(again) == [places[name] for name in shuffled]

    back = REFERENCE_LAYOUTS[layout](own)
    assert {name: list(tensor.shape) for name, tensor in back.items()} == keys


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_two_published_layouts_agree(shared_dir: Path, variant: str) -> None:
    # Both files list the entries of a block in the same order.
    official, openmmlab = (
        json.loads((shared_dir / "parity" / f"keys_{layout}_{variant}.json").read_text())
        for layout in ("official", "mmpretrain")
    )
    left, right = (
        list(convert_state_dict({name: torch.empty(shape, device="meta") for name, shape in keys.items()}))
        for keys in (official, openmmlab)
    )
    assert set(left) == set(right)
    assert [name for name in left if "blocks" in name] == [name for name in right if "blocks" in name]


@pytest.mark.parametrize(
    ("official", "openmmlab", "own"),
    [
        ("cls_token", "backbone.cls_token", "cls_token"),
        ("conv1.weight", "backbone.conv1.weight", "stem.conv.weight"),
        ("bn1.running_var", "backbone.bn1.running_var", "stem.bn.running_var"),
        ("trans_patch_conv.bias", "backbone.trans_patch_conv.bias", "patch_embed.bias"),
        ("conv_1.conv1.weight", "backbone.conv_1.conv1.weight", "blocks.0.bottleneck.conv1.weight"),
        (
            "conv_1.residual_conv.weight",
            "backbone.conv_1.residual_conv.weight",
            "blocks.0.bottleneck.shortcut_conv.weight",
        ),
        (
            "conv_1.residual_bn.bias",
            "backbone.conv_1.residual_bn.bias",
            "blocks.0.bottleneck.shortcut_bn.bias",
        ),
        ("trans_1.norm1.bias", "backbone.trans_1.ln1.bias", "blocks.0.transformer.norm1.bias"),
        (
            "trans_1.attn.qkv.weight",
            "backbone.trans_1.attn.qkv.weight",
            "blocks.0.transformer.attn.qkv.weight",
        ),
        (
            "conv_trans_2.cnn_block.bn3.bias",
            "backbone.conv_trans_2.cnn_block.bn3.bias",
            "blocks.1.bottleneck.bn3.bias",
        ),
        (
            "conv_trans_12.fusion_block.conv2.weight",
            "backbone.conv_trans_12.fusion_block.conv2.weight",
            "blocks.11.fusion.conv2.weight",
        ),
        (
            "conv_trans_10.squeeze_block.ln.weight",
            "backbone.conv_trans_10.squeeze_block.ln.weight",
            "blocks.9.fcu_down.norm.weight",
        ),
        (
            "conv_trans_3.squeeze_block.conv_project.bias",
            "backbone.conv_trans_3.squeeze_block.conv_project.bias",
            "blocks.2.fcu_down.proj.bias",
        ),
        (
            "conv_trans_3.expand_block.conv_project.bias",
            "backbone.conv_trans_3.expand_block.conv_project.bias",
            "blocks.2.fcu_up.proj.bias",
        ),
        (
            "conv_trans_3.expand_block.bn.weight",
            "backbone.conv_trans_3.expand_block.bn.weight",
            "blocks.2.fcu_up.bn.weight",
        ),
        (
            "conv_trans_4.trans_block.norm2.weight",
            "backbone.conv_trans_4.trans_block.ln2.weight",
            "blocks.3.transformer.norm2.weight",
        ),
        (
            "conv_trans_4.trans_block.mlp.fc1.weight",
            "backbone.conv_trans_4.trans_block.ffn.layers.0.0.weight",
            "blocks.3.transformer.mlp.fc1.weight",
        ),
        (
            "conv_trans_4.trans_block.mlp.fc2.weight",
            "backbone.conv_trans_4.trans_block.ffn.layers.1.weight",
            "blocks.3.transformer.mlp.fc2.weight",
        ),
        ("trans_norm.weight", "backbone.trans_norm.weight", "norm.weight"),
        ("conv_cls_head.weight", "head.conv_cls_head.weight", "conv_head.weight"),
        ("trans_cls_head.bias", "head.trans_cls_head.bias", "trans_head.bias"),
    ],
)
def test_names_by_example(official: str, openmmlab: str, own: str) -> None:
    value = torch.zeros(2)
    # conv1, bn1 and cls_token alone could be a ResNet's or a ViT's: another name shows the layout.
    assert own in convert_state_dict({"trans_norm.bias": value, official: value})
    assert own in convert_state_dict({"backbone.trans_norm.bias": value, openmmlab: value})
    assert list(to_official({own: value})) == [official]
    assert list(to_openmmlab({own: value})) == [openmmlab]


@pytest.mark.parametrize("layout", ["official", "openmmlab"])
def test_coupling_projections_become_linear_and_back(layout: str) -> None:
    foreign = LAYOUTS[layout](DONOR)
    convs = {name for name in foreign if name.endswith("conv_project.weight")}
    assert len(convs) == 8 and all(foreign[name].shape[2:] == (1, 1) for name in convs)
    own = convert_state_dict(foreign)
    assert own["blocks.1.fcu_down.proj.weight"].ndim == own["blocks.1.fcu_up.proj.weight"].ndim == 2
    assert same(own, DONOR)


@quick
@given(
    layout=st.sampled_from(["official", "openmmlab"]),
    names=st.permutations(OWN_NAMES),
    keep=st.integers(0, len(OWN_NAMES)),
    prefixes=st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=3),
    wrappers=st.lists(st.sampled_from(["state_dict", "model", "model_ema", "state_dict_ema"]), max_size=2),
)
def test_any_part_in_any_order_survives_the_way_there_and_back(
    layout: str, names: list[str], keep: int, prefixes: list[str], wrappers: list[str]
) -> None:
    part = {name: DONOR[name] for name in [*names[:keep], "trans_head.weight"]}
    checkpoint: dict[str, Any] = {"".join(prefixes) + name: t for name, t in LAYOUTS[layout](part).items()}
    inner = checkpoint
    for wrapper in wrappers:
        checkpoint = {"epoch": 3, wrapper: checkpoint, "meta": {"mmcls_version": "0.20"}}
    given_names, given_ids = list(inner), [id(tensor) for tensor in inner.values()]

    own = convert_state_dict(checkpoint)
    assert list(own) == list(part)
    assert same(own, part)
    assert all(own[name].data_ptr() == part[name].data_ptr() for name in part)  # renamed, not copied
    assert list(inner) == given_names and [id(tensor) for tensor in inner.values()] == given_ids


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone."])
def test_own_names_pass_unchanged(prefix: str) -> None:
    for weights in (DONOR, {name: t for name, t in DONOR.items() if "head" not in name}):
        given = {prefix + name: tensor for name, tensor in weights.items()}
        passed = checkpoint_filter_fn(given, make_model(num_classes=0))
        assert list(passed) == list(weights)
        assert all(passed[name] is weights[name] for name in weights)
        assert passed is not given and list(given) == [prefix + name for name in weights]


def test_other_networks_pass_unchanged() -> None:
    for name in ("test_resnet", "test_vit"):
        weights = timm.create_model(name).state_dict()
        assert list(convert_state_dict(weights)) == list(weights)


def test_averaged_weights_are_preferred() -> None:
    plain, averaged = {"trans_norm.bias": torch.zeros(1)}, {"trans_norm.bias": torch.ones(1)}
    for key in ("model_ema", "state_dict_ema"):
        assert convert_state_dict({"model": plain, key: averaged})["norm.bias"] == 1
        assert convert_state_dict({"model": plain, key: None})["norm.bias"] == 0


def test_what_is_no_state_dict_is_refused() -> None:
    with pytest.raises(UserError, match="'epoch' is of type int"):
        convert_state_dict({"epoch": 3, "weights": DONOR})
    with pytest.raises(UserError, match="not a named tensor"):
        convert_state_dict({3: torch.zeros(1)})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="no entries"):
        convert_state_dict({"state_dict": {}})
    ring: dict[str, Any] = {}
    ring["state_dict"] = ring
    with pytest.raises(UserError, match="not a named tensor"):
        convert_state_dict(ring)


def test_two_entries_for_one_place_are_refused() -> None:
    twice = {"conv_cls_head.bias": torch.zeros(1), "module.head.conv_cls_head.bias": torch.zeros(1)}
    with pytest.raises(UserError, match=r"both mean 'conv_head\.bias'"):
        convert_state_dict(twice)
