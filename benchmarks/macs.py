"""Parameters and multiply-accumulates (MACs) of every Conformer, in the plain formulation and in ours.

Counted are convolutions, linear layers and both products of attention (QK^T, and the product with V). Not
counted are biases, norms, activations, softmax, pooling, upsampling and additions. Zeros that a convolution
pads count as any other input. Under this convention the plain formulation has 5.226 / 10.599 / 7.046 / 23.326
GMACs at 224 x 224 for Ti, S, S/32 and B (the paper reports 5.2, 10.6 and 23.3 for Ti, S and B).

    python benchmarks/macs.py [--size 224]
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import nn

from oracle import ReferenceConformer, count_macs, plain_config


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Parameters and GMACs of every Conformer")
    parser.add_argument("--size", type=int, help="side of the image in pixels (default: each model's own)")
    arguments = parser.parse_args()
    print(f"{'model':32} {'size':>5} {'parameters':>11} {'plain GMACs':>12} {'GMACs here':>11} {'ratio':>6}")
    for name in timm.list_models("conformer_*"):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=1000)
            reference = ReferenceConformer(plain_config(model))
        size = arguments.size or model.pretrained_cfg["input_size"][-1]
        plain = count_macs(reference, (model.in_chans, size, size))
        ours = count_macs(model, (model.in_chans, size, size))
        print(
            f"{name:32} {size:5} {count_parameters(model):11,} {plain / 1e9:12.3f} {ours / 1e9:11.3f}"
            f" {ours / plain:6.3f}"
        )


if __name__ == "__main__":
    main()
