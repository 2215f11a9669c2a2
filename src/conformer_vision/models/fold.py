"""Folding a BatchNorm into the layer before it (exact in eval mode, up to rounding)."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

__all__ = ["fold_norm"]


def fold_norm(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Fold `norm` into `layer`, in place, and return the module that takes the norm's place.

    The layer takes over the statistics that the norm uses in eval mode, whatever mode both are in.

    Returns:
        An `nn.Identity`; or `norm` itself, with `layer` unchanged, where folding would change the answer:
        either module was replaced, wrapped or hooked, or the norm has no running statistics.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear) or not isinstance(norm, _BatchNorm):
        return norm
    if type(layer) not in (nn.Conv2d, nn.Linear) or _is_hooked(layer) or _is_hooked(norm):
        return norm
    if norm.running_mean is None or norm.running_var is None:
        return norm
    fold = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
    with torch.no_grad():
        weight, bias = fold(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    # The helpers let a bias that they add learn nothing.
    layer.weight, layer.bias = weight, bias.requires_grad_(weight.requires_grad)
    return nn.Identity()


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks)
