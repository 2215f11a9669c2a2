"""What every variant promises: its shapes, its options, timm's model surface, the compilers."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from timm.utils.attention_extract import AttentionExtract
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from conformer_vision.models import VARIANTS, BranchLogits, Conformer, ConformerConfig

SMALL = "conformer_nano_patch8_64"
PARAMETERS = {
    "conformer_tiny_patch16_224": 23_524_704,
    "conformer_small_patch16_224": 37_673_424,
    "conformer_small_patch32_224": 38_853_072,
    "conformer_base_patch16_224": 83_289_136,
}


def small(**options: object) -> Conformer:
    """A small model with fixed weights: the options differ, the weights do not."""
    torch.manual_seed(0)
    # A bottleneck that starts as its shortcut would hide what happens inside it.
    model = timm.create_model(SMALL, **{"num_classes": 5, "zero_init_last": False} | options)
    assert isinstance(model, Conformer)
    return model.eval()


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- sizes and shapes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_count(name: str) -> None:
    parameters = count(timm.create_model(name, device="meta"))
    if name in PARAMETERS:
        assert parameters == PARAMETERS[name]
    if "nano" in name:
        assert parameters <= 8_000_000


@pytest.mark.parametrize("name", VARIANTS)
def test_any_size_on_meta(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=7, in_chans=4).eval()
    stride = model.feature_info[-1]["reduction"]
    for size in ((32, 32), (33, 47), (224, 64), (65, 127)):
        images = torch.empty(2, 4, *size, device="meta")
        features, logits = model.forward_features(images), model(images)
        patches = [-(-side // model.config.patch_size) * model.config.patch_size for side in size]
        assert features.shape[2:] == tuple(-(-side // stride) for side in patches), size
        assert features.shape[:2] == (2, model.num_features)
        assert logits.shape == (2, 7)


def test_small_image_forms_keep_64_tokens() -> None:
    for name, size in (("conformer_nano_patch4_32", 32), ("conformer_tiny_patch8_64", 64)):
        model = timm.create_model(name).eval()
        seen: list[Tensor] = []
        model.blocks[-1].register_forward_hook(lambda *call, seen=seen: seen.append(call[2][1]))
        with torch.no_grad():
            model(images(1, 3, size, size))
        assert seen[0].shape[1] == 1 + 8 * 8


def test_smallest_image_in_training_mode() -> None:
    model = small().train()
    assert torch.isfinite(model(images(2, 3, 32, 32))).all()


# ---- outputs -------------------------------------------------------------------------------------


def test_one_tensor_unless_asked() -> None:
    model, x = small(), images(2, 3, 64, 64)
    with torch.no_grad():
        branches = model.forward_branches(x)
        assert isinstance(branches, BranchLogits)
        torch.testing.assert_close(model(x), (branches.conv + branches.trans) / 2)
        torch.testing.assert_close(model.fuse_logits(branches), model(x))
    model.train()
    assert isinstance(model(x), Tensor)
    model.set_distilled_training(True)
    assert isinstance(model(x), BranchLogits)
    model.eval()
    assert isinstance(model(x), Tensor)
    model.train().set_distilled_training(False)
    assert isinstance(model(x), Tensor)


def test_forward_features_holds_both_heads_input() -> None:
    model, x = small(), images(2, 3, 64, 96)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        torch.testing.assert_close(features.mean((2, 3)), pooled)
        branches = model.forward_branches(x)
        torch.testing.assert_close(model.conv_head(pooled[:, : model.map_chs]), branches.conv)
        torch.testing.assert_close(model.trans_head(pooled[:, model.map_chs :]), branches.trans)


def test_without_classes() -> None:
    model, x = small(), images(2, 3, 64, 64)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled)
        branches = model.forward_branches(x)
        torch.testing.assert_close(torch.cat(branches, dim=1), pooled)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, model.num_features, 4, 4)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
    assert timm.create_model(SMALL, num_classes=0)(x).shape == pooled.shape


def test_tokens_of_blocks() -> None:
    model, x = small(), images(2, 3, 64, 64)
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *call, index=index: seen.__setitem__(index, call[2]))
    with torch.no_grad():
        levels = model.forward_intermediates(x, return_tokens=True, intermediates_only=True)
        last = model.forward_intermediates(
            x, indices=1, return_tokens=True, intermediates_only=True, norm=True
        )
    assert levels[0].tokens is None
    for level, block in zip(levels[1:], (3, 7, 10, 11), strict=True):
        assert torch.equal(level.map, seen[block][0])
        assert torch.equal(level.tokens, seen[block][1])
    torch.testing.assert_close(last[0].tokens, model.norm(seen[11][1]))


# ---- options: each has an effect ------------------------------------------------------------------


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
    bottleneck, x = model.blocks[1].bottleneck, images(1, 96, 8, 8)
    torch.testing.assert_close(bottleneck(x)[0], x.relu())
    published = {name for name, config in VARIANTS.items() if not config.zero_init_last}
    assert published == PARAMETERS.keys()


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


# ---- training ------------------------------------------------------------------------------------


def test_every_parameter_learns() -> None:
    model = small().train()
    model(images(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_grad_checkpointing_is_exact_and_counts_batches_once() -> None:
    plain, x = small(drop_path_rate=0.2).train(), images(4, 3, 64, 64)
    lean = copy.deepcopy(plain)
    lean.set_grad_checkpointing()
    for model in (plain, lean):
        torch.manual_seed(2)
        model(x).square().mean().backward()
    for (name, expected), actual in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)
    for (name, expected), actual in zip(plain.named_buffers(), lean.buffers(), strict=True):
        assert torch.equal(actual, expected), name
    assert plain.blocks[0].bottleneck.bn1.num_batches_tracked == 1
    assert {norm.momentum for norm in lean.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_grad_checkpointing_stores_less() -> None:
    model, x = small().train(), images(4, 3, 64, 64)

    def stored() -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        return sum(sizes)

    before = stored()
    model.set_grad_checkpointing()
    assert stored() < before / 2


def test_layer_decay_and_weight_decay_groups() -> None:
    model = small()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["stem.conv.weight"] == layers["cls_token"] == layers["patch_embed.weight"] == 0
    assert layers["blocks.0.bottleneck.conv1.weight"] == 1
    assert layers["blocks.11.fcu_up.proj.weight"] == layers["norm.weight"] == 12
    assert layers["conv_head.weight"] == layers["trans_head.weight"] == 13
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert decayed[id(model.cls_token)] == 0
    assert decayed[id(model.blocks[3].fcu_down.norm.weight)] == 0
    assert decayed[id(model.blocks[3].fcu_down.proj.weight)] == 0.1
    assert scale[id(model.conv_head.weight)] == 1
    assert scale[id(model.stem.conv.weight)] == pytest.approx(0.5**13)


def test_init_weights_after_to_empty() -> None:
    model = timm.create_model(SMALL, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    model.init_weights()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    assert model.blocks[2].transformer.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    fan_out = model.blocks[8].fcu_down.proj.weight.shape[0]
    assert model.blocks[8].fcu_down.proj.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


# ---- names ---------------------------------------------------------------------------------------


def test_parameter_names_are_frozen() -> None:
    frozen = Path(__file__).with_name("parameter_names.txt").read_text().split()
    assert list(timm.create_model("conformer_small_patch16_224", device="meta").state_dict()) == frozen


def test_options_leave_names_alone() -> None:
    options = {"upsample": "bilinear", "head_fusion": "sum", "zero_init_last": True}
    options |= {"double_class_token": False} | dict.fromkeys(RATES, 0.1)
    assert list(small(**options).state_dict()) == list(small().state_dict())


# ---- timm's surface beyond its own test-suite ------------------------------------------------------


@pytest.mark.parametrize("level", range(5))
def test_pruning_deletes_blocks_and_keeps_maps(level: int) -> None:
    model, x = small(), images(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
        branches = model.forward_branches(x) if level == 4 else None
    parameters = count(model)
    model.prune_intermediate_layers([level])
    assert len(model.blocks) == (0, 4, 8, 11, 12)[level]
    assert count(model) < parameters
    features = model.forward_features(x)
    torch.testing.assert_close(features, expected)
    features.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with pytest.raises(ValueError, match="class token"):
        model.forward_branches(x)
    assert branches is None or branches.conv.shape == (2, 5)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)


def test_pruning_nothing_changes_nothing() -> None:
    model, x = small(), images(2, 3, 64, 64)
    expected = model(x)
    assert model.prune_intermediate_layers([4], prune_head=False) == [4]
    assert torch.equal(model(x), expected)


def test_features_only_with_hooks_and_chosen_levels() -> None:
    x = images(1, 3, 64, 96)
    getter = timm.create_model(SMALL, features_only=True, out_indices=(1, 3)).eval()
    assert [tuple(map_.shape[2:]) for map_ in getter(x)] == [(32, 48), (8, 12)]
    assert getter.feature_info.reduction() == [2, 8]
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


# ---- compilers -----------------------------------------------------------------------------------


SHALLOW = {"depths": (2, 1, 2)}  # compilers take time for every block; these are one of each kind


def test_torch_compile_without_graph_breaks() -> None:
    model, x = small(**SHALLOW), images(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    model.train()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x).sum().backward()
    assert model.stem.conv.weight.grad is not None


def test_torch_compile_with_grad_checkpointing() -> None:
    model, x = small(**SHALLOW).train(), images(2, 3, 64, 64)
    expected = copy.deepcopy(model)
    expected(x).sum().backward()
    model.set_grad_checkpointing()
    torch.compile(model, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(
        model.stem.conv.weight.grad, expected.stem.conv.weight.grad, rtol=1e-3, atol=1e-3
    )
    assert torch.equal(model.stem.bn.running_mean, expected.stem.bn.running_mean)
    torch.testing.assert_close(
        model.blocks[2].bottleneck.bn2.running_mean, expected.blocks[2].bottleneck.bn2.running_mean
    )


@pytest.mark.parametrize("name", [SMALL, "conformer_nano_patch16_224"])
def test_torch_export_with_dynamic_batch_and_size(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **SHALLOW).eval()
    dynamic = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        model, (images(2, 3, 64, 96),), dynamic_shapes={"x": {0: dynamic, 2: dynamic, 3: dynamic}}
    ).module()
    # torch.export takes sizes of 1 for constants: the last map has to have two cells each way.
    smallest = model.feature_info[-1]["reduction"] + 1
    for size in [(1, 3, smallest, smallest), (3, 3, 37, 79), (2, 3, 96, 64)]:
        x = images(*size)
        with torch.no_grad():
            torch.testing.assert_close(exported(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("pruned", [False, True])
def test_torchscript_survives_saving(pruned: bool) -> None:
    model = small()
    if pruned:
        model.prune_intermediate_layers([2])
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    for size in [(1, 3, 64, 64), (2, 3, 33, 79)]:
        x = images(*size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), model(x))


def test_fx_is_bit_equal() -> None:
    model, x = small(), images(2, 3, 64, 64)
    with torch.no_grad():
        traced = torch.fx.symbolic_trace(model)
        assert torch.equal(traced(x), model(x))
        levels = create_feature_extractor(model, {"blocks.3": "a", "blocks.11": "b"})(x)
        expected = model.forward_intermediates(x, indices=[1, 4], intermediates_only=True)
    assert torch.equal(levels["b"] if isinstance(levels["b"], Tensor) else levels["b"][0], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    assert small().to(dtype)(images(1, 3, 64, 64).to(dtype)).dtype == dtype


def test_autocast_training_step() -> None:
    model = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images(2, 3, 64, 64)).float().square().mean()
    loss.backward()
    assert torch.isfinite(model.stem.conv.weight.grad).all()


def test_copies_and_pickles() -> None:
    model, x = small(), images(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(x), model(x))
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
