"""Write the weights of a run as they ship: half precision, with what people call the classes.

    python benchmarks/release.py runs/tiny20/last.safetensors weights.safetensors

Statistics of BatchNorm stay in single precision. Classes of Tiny-ImageNet are called "n02123045 tabby": a
WordNet number and a name, which becomes the description.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import torch

from conformer_vision.weights import load_model, save_weights

_WORDNET = re.compile(r"n\d{8} (.+)")


def release(source: Path, target: Path, *, input_size: int | None = None) -> int:
    """Write the file and give its size in bytes.

    Args:
        source: weights of a run, with their spec.
        target: file to write.
        input_size: pixels of the input that the spec is to ask for, where not those of the run.
    """
    model, spec = load_model(source)
    if input_size is not None:
        spec = replace(spec, input_size=(spec.in_chans, input_size, input_size))
    names = [_WORDNET.fullmatch(name) for name in spec.classes]
    if all(names):
        spec = replace(spec, descriptions=tuple(name[1] for name in names if name))
    statistics = {name for name, _ in model.named_buffers()}
    weights = {
        name: tensor if name in statistics else tensor.to(torch.float16)
        for name, tensor in model.state_dict().items()
    }
    save_weights(weights, spec, target)
    return target.stat().st_size


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write weights as they ship.")
    parser.add_argument("source", type=Path, help="a run folder or its .safetensors file")
    parser.add_argument("target", type=Path, help="file to write")
    parser.add_argument("--input_size", type=int, help="pixels of the input, where not those of the run")
    options = parser.parse_args()
    written = release(options.source, options.target, input_size=options.input_size)
    print(f"{options.target}: {written / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
