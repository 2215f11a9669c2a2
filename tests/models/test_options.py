"""Options of the network: each has an effect, an impossible value is named, and none changes a name."""

from pathlib import Path

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils.attention_extract import AttentionExtract

from conformer_vision.models import Conformer, ConformerConfig
from contracts.model import images

SMALL = "conformer_nano_patch8_64"


def small(**options: object) -> Conformer:
    """A small model with fixed weights: the options differ, the weights do not."""
    torch.manual_seed(0)
    # A bottleneck that starts as its shortcut would hide what happens inside it.
    shape = {"num_classes": 5, "channel_ratio": 0.375, "embed_dim": 40, "zero_init_last": False}
    model = timm.create_model(SMALL, **shape | options)
    assert isinstance(model, Conformer)
    return model.eval()


def test_upsample_changes_the_answer() -> None:
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(small()(x), small(upsample="bilinear")(x))


def test_head_fusion_sum_is_twice_the_mean() -> None:
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(small(head_fusion="sum")(x), 2 * small()(x))


def test_class_token_enters_doubled_or_as_it_is() -> None:
    """What each transformer block is given, against what the block before it gave."""
    x = images(2, 3, 64, 64)
    for doubled in (True, False):
        model = small(double_class_token=doubled)
        inputs, outputs = [], []
        for block in model.blocks:
            block.transformer.register_forward_hook(
                lambda _, args, out, seen=(inputs, outputs): seen[0].append(args[0]) or seen[1].append(out)
            )
        with torch.no_grad():
            model(x)
        assert len(inputs) == 12
        for given, before in zip(inputs[1:], outputs, strict=False):
            torch.testing.assert_close(given[:, 0], before[:, 0] * (2 if doubled else 1))
            assert not torch.allclose(given[:, 1:], before[:, 1:])


RATES = ["drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "conv_drop_path_rate"]


@pytest.mark.parametrize("rate", RATES)
def test_rate_makes_training_random(rate: str) -> None:
    x = images(4, 3, 64, 64)
    model = small(**{rate: 0.5})
    with torch.no_grad():
        torch.testing.assert_close(model(x), small()(x))  # evaluation does not change
        model.train()
        torch.testing.assert_close(small().train()(x), small().train()(x))
        assert not torch.allclose(model(x), model(x))


def test_stochastic_depth_grows_linearly() -> None:
    model = small(drop_path_rate=0.22, conv_drop_path_rate=0.11)
    trans = [getattr(block.transformer.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    conv = [getattr(block.fusion.drop_path, "drop_prob", 0.0) for block in list(model.blocks)[1:]]
    assert trans == pytest.approx([0.02 * index for index in range(12)])
    assert conv == pytest.approx([0.01 * index for index in range(1, 12)])


def test_zero_init_last_starts_bottlenecks_as_shortcuts() -> None:
    model = small(zero_init_last=True)
    assert all(not block.bottleneck.bn3.weight.any() for block in model.blocks)
    assert all(bool(block.bottleneck.bn3.weight.all()) for block in small().blocks)
    bottleneck = model.blocks[1].bottleneck
    x = images(1, bottleneck.conv1.in_channels, 8, 8)
    torch.testing.assert_close(bottleneck(x)[0], x.relu())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"patch_size": 12}, "patch_size=12"),
        ({"stem_stride": 3}, "stem_stride=3"),
        ({"embed_dim": 100, "num_heads": 3}, "embed_dim=100"),
        ({"channel_ratio": 0.01}, "channel_ratio=0.01"),
        ({"mlp_ratio": 0}, "mlp_ratio=0"),
        ({"depths": (1, 1, 1)}, r"depths=\(1, 1, 1\)"),
        ({"upsample": "cubic"}, "upsample='cubic'"),
        ({"head_fusion": "max"}, "head_fusion='max'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"in_chans": 0}, "in_chans=0"),
        ({"global_pool": "max"}, "global_pool='max'"),
        ({"global_pool": ""}, "num_classes=20 needs"),
    ],
)
def test_impossible_value_is_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        timm.create_model(SMALL, **options)


def test_suggested_patch_size_is_possible() -> None:
    with pytest.raises(ValueError, match="use 16"):
        ConformerConfig(patch_size=18)
    ConformerConfig(patch_size=16)


def test_smallest_image_in_training_mode() -> None:
    model = small().train()
    assert torch.isfinite(model(images(2, 3, 32, 32))).all()


def test_weight_decay_groups() -> None:
    model = small()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert decayed[id(model.cls_token)] == 0
    assert decayed[id(model.blocks[3].fcu_down.norm.weight)] == 0
    assert decayed[id(model.blocks[3].fcu_down.proj.weight)] == 0.1
    assert scale[id(model.conv_head.weight)] == 1
    assert scale[id(model.stem.conv.weight)] == pytest.approx(0.5**13)


def test_parameter_names_are_frozen() -> None:
    frozen = Path(__file__).with_name("parameter_names.txt").read_text().split()
    assert list(timm.create_model("conformer_small_patch16_224", device="meta").state_dict()) == frozen


def test_options_leave_names_alone() -> None:
    options = {"upsample": "bilinear", "head_fusion": "sum", "zero_init_last": True}
    options |= {"double_class_token": False} | dict.fromkeys(RATES, 0.1)
    assert list(small(**options).state_dict()) == list(small().state_dict())


def test_features_only_with_hooks_and_chosen_levels() -> None:
    x = images(1, 3, 64, 96)
    getter = timm.create_model(SMALL, features_only=True, out_indices=(1, 3)).eval()
    assert [tuple(map_.shape[2:]) for map_ in getter(x)] == [(16, 24), (4, 6)]
    assert getter.feature_info.reduction() == [4, 16]
    hooks = timm.create_model(SMALL, features_only=True, feature_cls="hook").eval()
    assert [map_.shape[1] for map_ in hooks(x)] == hooks.feature_info.channels()


def test_attention_maps_from_the_plain_path() -> None:
    model, x = small(), images(2, 3, 64, 64)
    with torch.no_grad():
        fused = model(x)
        model.set_fused_attention(False)
        torch.testing.assert_close(model(x), fused, rtol=1e-4, atol=1e-5)
        maps = AttentionExtract(model, method="hook", names=["blocks.*.transformer.attn.attn_drop"])(x)
    assert len(maps) == 12
    for attention in maps.values():
        assert attention.shape == (2, 5, 65, 65)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5, 65))
