"""What every variant promises, on a small form of it: one class, inherited once per variant."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import pytest
import timm
import torch
from timm.models._manipulate import group_parameters
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from conformer_vision import BranchLogits, Conformer

# One block of each kind, and bottlenecks that do not start as their shortcuts, which hides what is in them.
SMALL: dict[str, Any] = {"depths": (2, 1, 2), "num_classes": 5, "zero_init_last": False}


def images(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def use_trained_norms(model: nn.Module) -> None:
    """Give the BatchNorms statistics and scales as after training."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)


def relative(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm() / expected.double().norm()
    return difference.item()


class ModelContract:
    """Inherit it, and name the variant."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}  # that make the variant narrow
    size: ClassVar[tuple[int, int]] = (64, 52)  # not square, and padded to the variants' patches

    def build(self, **options: Any) -> Conformer:
        torch.manual_seed(0)
        model = timm.create_model(self.name, **SMALL | self.options | options)
        assert isinstance(model, Conformer)
        use_trained_norms(model)
        return model.eval()

    @pytest.fixture(scope="class")
    def shared(self) -> Conformer:
        """A model that no test changes."""
        return self.build()

    @pytest.fixture
    def x(self) -> Tensor:
        return images(2, 3, *self.size)

    # ---- shapes and outputs ----------------------------------------------------------------------

    def test_takes_any_size_and_number_of_channels(self) -> None:
        model = self.build(num_classes=7, in_chans=4)
        for size in ((32, 32), (33, 47), (224, 64), (65, 127)):
            patches = [-(-side // model.config.patch_size) * model.config.patch_size for side in size]
            x = images(2, 4, *size)
            with torch.no_grad():
                features, logits = model.forward_features(x), model(x)
            stride = model.feature_info[-1]["reduction"]
            assert features.shape == (2, model.num_features, *(-(-side // stride) for side in patches)), size
            assert logits.shape == (2, 7)

    def test_gives_one_tensor_unless_asked(self, shared: Conformer, x: Tensor) -> None:
        with torch.no_grad():
            branches = shared.forward_branches(x)
            assert isinstance(branches, BranchLogits)
            torch.testing.assert_close(shared(x), (branches.conv + branches.trans) / 2)
            assert torch.equal(shared.fuse_logits(branches), shared(x))
            model = copy.deepcopy(shared)
            for switch in (True, False):
                model.set_distilled_training(switch)
                assert isinstance(model.train()(x), BranchLogits if switch else Tensor)
                assert isinstance(model.eval()(x), Tensor)

    def test_features_hold_the_input_of_both_heads(self, shared: Conformer, x: Tensor) -> None:
        with torch.no_grad():
            features = shared.forward_features(x)
            pooled = shared.forward_head(features, pre_logits=True)
            torch.testing.assert_close(features.mean((2, 3)), pooled)
            branches = shared.forward_branches(x)
            torch.testing.assert_close(shared.conv_head(pooled[:, : shared.map_chs]), branches.conv)
            torch.testing.assert_close(shared.trans_head(pooled[:, shared.map_chs :]), branches.trans)

    def test_replaces_and_removes_the_heads(self, shared: Conformer, x: Tensor) -> None:
        model = copy.deepcopy(shared)
        with torch.no_grad():
            pooled = model.forward_head(model.forward_features(x), pre_logits=True)
            model.reset_classifier(0)
            torch.testing.assert_close(model(x), pooled)
            torch.testing.assert_close(torch.cat(model.forward_branches(x), dim=1), pooled)
            model.reset_classifier(0, "")
            assert model(x).shape[:2] == (2, model.num_features)
            model.reset_classifier(3)
            assert model(x).shape == (2, 3)
            without = self.build(num_classes=0)
            assert without(x).shape == pooled.shape

    def test_maps_and_tokens_are_those_of_the_blocks(self, shared: Conformer, x: Tensor) -> None:
        model, seen = copy.deepcopy(shared), {}
        for number, block in enumerate(model.blocks, start=1):
            block.register_forward_hook(lambda *call, number=number: seen.update({number: call[2]}))
        with torch.no_grad():
            levels = model.forward_intermediates(x, return_tokens=True, intermediates_only=True)
            normed = model.forward_intermediates(x, return_tokens=True, intermediates_only=True, norm=True)
            features, maps = model.forward_intermediates(x)
            assert torch.equal(features, model.forward_features(x))
            seen.clear()
            early = model.forward_intermediates(x, indices=[1], intermediates_only=True, stop_early=True)
        assert max(seen) == model.feature_depths[1], "stopped early"
        assert torch.equal(early[0], maps[1])
        with torch.no_grad():
            model(x)
        for level, number in zip(levels, model.feature_depths, strict=True):
            if number == 0:
                assert level.tokens is None
                continue
            assert torch.equal(level.map, seen[number][0])
            assert torch.equal(level.tokens, seen[number][1])
        strides = [info["reduction"] for info in model.feature_info]
        assert strides == [strides[0] * 2**level for level in range(len(strides))]
        for level, stride in zip(maps, strides, strict=True):
            assert maps[0].shape[2] * strides[0] == level.shape[2] * stride
        torch.testing.assert_close(normed[-1].tokens, model.norm(levels[-1].tokens))
        assert torch.equal(normed[-1].map, features)
        assert normed[-1].map.shape[1] == model.feature_info[-1]["num_chs_norm"] == model.num_features
        assert [level.shape[1] for level in maps] == [info["num_chs"] for info in model.feature_info]
        assert all(torch.equal(one.map, other) for one, other in zip(levels, maps, strict=True))

    def test_any_block_by_its_number(self, shared: Conformer, x: Tensor) -> None:
        with torch.no_grad():
            every = shared.forward_intermediates(
                x, blocks=[4, 0, 1, 2], return_tokens=True, intermediates_only=True, stop_early=True
            )
            levels = shared.forward_intermediates(x, return_tokens=True, intermediates_only=True)
        assert len(every) == 4 and every[0].tokens is None, "in the order of the network"
        assert torch.equal(every[2].map, levels[shared.feature_depths.index(2)].map)
        with pytest.raises(ValueError, match="no block 6; use 1 to 5"):
            shared.forward_intermediates(x, blocks=[6])
        with pytest.raises(ValueError, match="not both"):
            shared.forward_intermediates(x, indices=[1], blocks=[1])

    # ---- where -----------------------------------------------------------------------------------

    def test_attention_is_that_of_the_forward_pass(self, shared: Conformer, x: Tensor) -> None:
        seen: list[Tensor] = []
        plain = copy.deepcopy(shared)
        plain.set_fused_attention(False)
        for block in plain.blocks:
            block.transformer.attn.attn_drop.register_forward_hook(lambda *call: seen.append(call[2]))
        with torch.no_grad():
            plain(x)
            attention, blocks, features = shared.forward_attention(x, return_features=True)
            for actual, expected in zip(attention, seen, strict=True):
                torch.testing.assert_close(actual, expected)
                torch.testing.assert_close(actual.sum(-1), torch.ones_like(actual[..., 0]))
            torch.testing.assert_close(shared.forward_head(features), shared(x))
            assert len(blocks) == len(shared.blocks)
            assert torch.equal(shared.forward_attention(x)[-1], attention[-1])
        assert shared.blocks[0].transformer.attn.fused_attn, "the model stays as it is"

    def test_class_maps(self, shared: Conformer, x: Tensor) -> None:
        with torch.no_grad():
            maps, branches = shared.class_maps(x), shared.forward_branches(x)
            torch.testing.assert_close(maps.conv.mean((2, 3)) + shared.conv_head.bias, branches.conv)
            patch = shared.config.patch_size
            grid = [-(-side // patch) for side in self.size]
            assert list(maps.trans.shape) == [2, 5, *grid]

    @pytest.mark.parametrize("output_stride", [32, 16, 8])
    def test_output_stride(self, output_stride: int, shared: Conformer, x: Tensor) -> None:
        model = self.build(output_stride=output_stride)
        model.load_state_dict(shared.state_dict())
        natural = shared.feature_info[-1]["reduction"]
        maps = model.forward_intermediates(x, intermediates_only=True)
        sides = [-(-side // model.config.patch_size) * model.config.patch_size for side in self.size]
        for info, level in zip(model.feature_info, maps, strict=True):
            assert info["reduction"] <= max(output_stride, 2)
            if info["module"] != "stem":
                assert list(level.shape[2:]) == [-(-side // info["reduction"]) for side in sides]
        if natural <= output_stride:
            assert torch.equal(model(x), shared(x)), "nothing changes"
            return
        features, expected = model.forward_features(x), shared.forward_features(x)
        step = natural // model.feature_info[-1]["reduction"]
        if step == 2 and output_stride == shared.config.reduction(2):
            # Only the last convolution's stride fell away: every other position is the network's own.
            chs = shared.map_chs
            assert relative(features[:, :chs, ::2, ::2], expected[:, :chs]) < 1e-5
            assert relative(features[:, chs:, 0, 0], expected[:, chs:, 0, 0]) < 1e-5

    # ---- training --------------------------------------------------------------------------------

    def test_every_parameter_learns(self, x: Tensor) -> None:
        model = self.build().train()
        model(x).square().mean().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    @pytest.mark.parametrize("mode", ["cheap", "full"])
    def test_checkpointing_changes_no_gradient(self, mode: str, x: Tensor) -> None:
        plain = self.build(drop_path_rate=0.3, conv_drop_path_rate=0.3, proj_drop_rate=0.1).train()
        model = copy.deepcopy(plain)
        model.set_grad_checkpointing(mode)
        for each in (plain, model):
            torch.manual_seed(2)
            each(x).square().mean().backward()
        for (name, expected), actual in zip(plain.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(actual.grad, expected.grad), name
        for (name, expected), actual in zip(plain.named_buffers(), model.buffers(), strict=True):
            assert torch.equal(actual, expected), name

    def test_layers_are_ordered_by_depth(self) -> None:
        model = timm.create_model(self.name, device="meta")
        layers = group_parameters(model, model.group_matcher(), reverse=True)
        assert layers["stem.conv.weight"] == layers["cls_token"] == layers["patch_embed.weight"] == 0
        assert layers["blocks.0.bottleneck.conv1.weight"] == 1
        assert layers["blocks.11.fcu_up.proj.weight"] == layers["norm.weight"] == 12
        assert layers["conv_head.weight"] == layers["trans_head.weight"] == 13

    def test_weights_can_be_set_afresh(self) -> None:
        model = timm.create_model(self.name, **SMALL | self.options, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
        model.init_weights()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
        last = model.blocks[-1]
        assert last.transformer.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        fan_out = last.fcu_down.proj.weight.shape[0]
        assert last.fcu_down.proj.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)

    # ---- other forms -----------------------------------------------------------------------------

    @pytest.mark.parametrize("level", range(5))
    def test_pruning_leaves_nothing_without_use(self, level: int, shared: Conformer, x: Tensor) -> None:
        model = copy.deepcopy(shared)
        level = min(level, len(model.feature_depths) - 1)
        with torch.no_grad():
            expected = model.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
        depth = model.feature_depths[level]
        model.prune_intermediate_layers([level], prune_norm=True)
        assert len(model.blocks) == depth
        features = model.forward_features(x)
        torch.testing.assert_close(features, expected)
        features.sum().backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
        with pytest.raises(ValueError, match="class token"):
            model.forward_branches(x)
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)

    def test_pruning_nothing_changes_nothing(self, shared: Conformer, x: Tensor) -> None:
        model = copy.deepcopy(shared)
        last = len(model.feature_depths) - 1
        assert model.prune_intermediate_layers([last], prune_head=False) == [last]
        assert torch.equal(model(x), shared(x))

    def test_folding_changes_no_answer(self, shared: Conformer) -> None:
        model = copy.deepcopy(shared).double().train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        x = images(2, 3, *self.size, dtype=torch.float64).requires_grad_()
        expected = copy.deepcopy(model).eval()(x)
        (slope,) = torch.autograd.grad(expected.square().sum(), x)
        for folded in (model.fold(), model.fold().fold(), reparameterize_model(model), pickled(model.fold())):
            assert folded.folded and not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
            assert relative(folded.eval()(x), expected) < 1e-12
            (actual,) = torch.autograd.grad(folded(x).square().sum(), x)
            assert relative(actual, slope) < 1e-10
        assert model.training and not model.folded
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_copies_and_pickles(self, shared: Conformer, x: Tensor) -> None:
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(shared)(x), shared(x))
            assert torch.equal(pickled(shared)(x), shared(x))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_computes_in_its_own_type(self, dtype: torch.dtype, shared: Conformer, x: Tensor) -> None:
        logits = copy.deepcopy(shared).to(dtype)(x.to(dtype))
        assert logits.dtype == dtype and relative(logits, shared(x)) < 0.05


def pickled(model: Conformer) -> Conformer:
    copied: Conformer = pickle.loads(pickle.dumps(model))
    return copied
