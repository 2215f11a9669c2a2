"""Draw Conformer: the whole network, and what happens inside one coupled block.

    python docs/figures/architecture.py

writes architecture.png and block.png beside this file. Every shape in the figures is read by hooks from the
model running on torch's meta device, so the figures cannot say what the code does not do.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from canvas import CNN_EDGE, DOWN, FAINT, INK, STAGES, TOKENS, TOKENS_EDGE, UP, Canvas
from torch import nn

import conformer_vision  # noqa: F401 - registers the models


@dataclass(frozen=True)
class Calls:
    """Shapes, batch left out, that modules took and gave in one forward pass."""

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]


def trace(model: nn.Module, size: tuple[int, int, int]) -> Calls:
    """Run `model` once on the meta device and note the first tensor that every module takes and gives."""
    calls = Calls({}, {})

    def note(name: str) -> None:
        def hook(_: nn.Module, args: tuple[object, ...], output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            for store, value in ((calls.inputs, args[0] if args else None), (calls.outputs, first)):
                if isinstance(value, torch.Tensor):
                    store[name] = tuple(value.shape[1:])

        modules[name].register_forward_hook(hook)

    modules = dict(model.named_modules())
    for name in modules:
        note(name)
    with torch.no_grad():
        model(torch.empty(1, *size, device="meta"))
    return calls


def show(shape: tuple[int, ...]) -> str:
    """Write a map (C, H, W) as C · H² and tokens (N, D) as N × D."""
    if len(shape) == 3:
        chs, height, width = shape
        return f"{chs} · {height}²" if height == width else f"{chs} · {height}×{width}"
    return " × ".join(str(extent) for extent in shape)


def draw_network(calls: Calls, model: nn.Module, path: Path) -> None:
    """Draw stem, blocks with their couplings, and heads: CNN branch left, transformer branch right."""
    conv_x, conv_w, token_x, token_w = 1.42, 2.68, 5.92, 2.2
    conv_mid, token_mid = conv_x + conv_w / 2, token_x + token_w / 2
    gap_mid = (conv_x + conv_w + token_x) / 2
    low, second, pitch = 0.22, 0.325, 0.65  # heights: of a box, down to a block's second box, of a block
    stem_y, top = (0.45, 0.83, 1.21), 1.4  # where the stem's boxes lie; block 1 has only the second box
    depth = len(model.blocks)
    last_y = top + (depth - 1) * pitch + second + low
    canvas = Canvas(8.3, last_y + 1.72)

    canvas.text(conv_mid, 0.27, "CNN branch", size=11, weight="bold", color=CNN_EDGE, va="baseline")
    canvas.text(
        token_mid, 0.27, "Transformer branch", size=11, weight="bold", color=TOKENS_EDGE, va="baseline"
    )

    conv, pool = model.stem.conv, model.stem_pool
    stem = (
        ("image", calls.inputs["stem"], FAINT),
        (
            f"{conv.kernel_size[0]}×{conv.kernel_size[1]} conv, stride {conv.stride[0]}",
            calls.outputs["stem"],
            CNN_EDGE,
        ),
        (
            f"{pool.kernel_size}×{pool.kernel_size} max pool, stride {pool.stride}",
            calls.outputs["stem_pool"],
            CNN_EDGE,
        ),
    )
    for (title, shape, edge), y in zip(stem, stem_y, strict=True):
        canvas.box(conv_x, y, conv_w, low, left=title, right=show(shape), edge=edge, fill="white")
    for start, end in zip(stem_y, (*stem_y[1:], top + second), strict=True):
        canvas.arrow((conv_mid, start + low), (conv_mid, end))
    canvas.text(0.48, stem_y[1] + low / 2, "stem", size=8.6, weight="bold", color=CNN_EDGE)
    embed_y, kernel = stem_y[2] + low / 2, model.patch_embed.kernel_size[0]
    canvas.arrow((conv_x + conv_w, embed_y), (token_x, embed_y), color=TOKENS_EDGE)
    canvas.text(
        gap_mid,
        embed_y - 0.06,
        f"patch embedding\n{kernel}×{kernel} conv, stride {kernel}",
        size=7.4,
        color=TOKENS_EDGE,
        va="bottom",
    )
    canvas.text(
        gap_mid, embed_y + 0.05, show(calls.outputs["patch_embed"]), size=7.4, color=TOKENS_EDGE, va="top"
    )
    tokens = show(calls.inputs["blocks.0.transformer"])
    canvas.box(
        token_x, stem_y[2], token_w, low, left="+ class token", right=tokens, edge=TOKENS_EDGE, fill="white"
    )
    canvas.arrow((token_mid, stem_y[2] + low), (token_mid, top + second))

    for index, block in enumerate(model.blocks):
        name, y = f"blocks.{index}", top + index * pitch
        fill = STAGES[model.config.stage(index)]
        coupled = hasattr(block, "fusion")
        for part, title, part_y in (
            ("bottleneck", "bottleneck", y if coupled else y + second),
            ("fusion", "fusion bottleneck", y + second),
        ):
            if part == "fusion" and not coupled:
                continue
            stride = getattr(block, part).conv2.stride[0]
            title = f"{title.split()[0]}, stride {stride}" if stride > 1 else title
            shape = show(calls.outputs[f"{name}.{part}"])
            canvas.box(conv_x, part_y, conv_w, low, left=title, right=shape, fill=fill, edge=CNN_EDGE)
        tokens = show(calls.outputs[f"{name}.transformer"])
        canvas.box(
            token_x,
            y + second,
            token_w,
            low,
            left="transformer block",
            right=tokens,
            fill=TOKENS,
            edge=TOKENS_EDGE,
        )
        number_y = (y if coupled else y + second) + (second + low if coupled else low) / 2
        canvas.text(conv_x - 0.2, number_y, str(index + 1), size=9, weight="bold", color=FAINT)
        if coupled:
            upper, lower = y + low / 2, y + second + low / 2
            taken = show(calls.outputs[f"{name}.bottleneck.conv2"])
            added = show(calls.inputs[f"{name}.fusion.conv2"])
            canvas.arrow((conv_mid, y + low), (conv_mid, y + second))
            canvas.arrow((conv_x + conv_w, upper), (token_mid - 0.085, upper), color=DOWN)
            canvas.plus(token_mid, upper, color=DOWN)
            canvas.text(gap_mid, upper, f"FCUDown  {taken}", size=7.4, color=DOWN, background="white")
            canvas.arrow((token_x, lower), (conv_x + conv_w, lower), color=UP)
            canvas.text(gap_mid, lower, f"FCUUp  {added}", size=7.4, color=UP, background="white")
        if index + 1 < depth:
            canvas.arrow((conv_mid, y + second + low), (conv_mid, y + pitch))
            canvas.arrow((token_mid, y + second + low), (token_mid, y + pitch + second))

    start = 0
    for stage, blocks in enumerate(model.config.depths):
        y0 = top + start * pitch + (0 if stage else second)
        y1 = top + (start + blocks - 1) * pitch + second + low
        canvas.ax.plot([1.02, 0.94, 0.94, 1.02], [y0, y0, y1, y1], color=CNN_EDGE, lw=1.2)
        title = f"stage {stage + 1}\nblocks\n{start + 1}–{start + blocks}"
        canvas.text(0.48, (y0 + y1) / 2, title, size=8.6, weight="bold", color=CNN_EDGE)
        start += blocks

    heads_y, fused_y = last_y + 0.22, last_y + 0.96
    classes = calls.outputs["conv_head"][-1]
    for x, width, title, module, edge in (
        (conv_x, conv_w, "average pool, Linear", "conv_head", CNN_EDGE),
        (token_x, token_w, "class token, LayerNorm, Linear", "trans_head", TOKENS_EDGE),
    ):
        middle = x + width / 2
        canvas.arrow((middle, last_y), (middle, heads_y))
        canvas.box(
            x,
            heads_y,
            width,
            0.42,
            left=f"{title}\n{calls.inputs[module][-1]} → {classes}",
            fill="white",
            edge=edge,
        )
    half = 1.05
    canvas.box(
        gap_mid - half,
        fused_y,
        2 * half,
        0.28,
        left="mean of the logits",
        right=str(classes),
        edge=INK,
        size=8.6,
    )
    for middle, end, angle in ((conv_mid, gap_mid - half, 180), (token_mid, gap_mid + half, 0)):
        canvas.arrow(
            (middle, heads_y + 0.42), (end, fused_y + 0.14), bend=f"angle,angleA=-90,angleB={angle},rad=6"
        )
    notes = (
        "Maps: channels · side².  Tokens: number × width, the class token included.",
        "FCUDown adds a bottleneck's inner map to the tokens, FCUUp the tokens to the next inner map.",
    )
    canvas.text(4.15, fused_y + 0.54, "\n".join(notes), size=7.6, color=FAINT)
    canvas.save(path)


def draw_block(calls: Calls, model: nn.Module, path: Path, *, index: int = 1) -> None:
    """Draw one coupled block layer by layer, with the shapes between the layers."""
    name, block = f"blocks.{index}", model.blocks[index]
    canvas = Canvas(8.3, 5.2)
    conv_y, token_y, high, wide = 1.0, 4.3, 0.3, 0.72
    middle = conv_y + high / 2
    down_x, up_x = 2.36, 5.62  # the couplings' columns
    canvas.text(0.1, 0.2, f"Block {index + 1}: CNN branch", size=11, weight="bold", color=CNN_EDGE, ha="left")
    canvas.text(0.1, 4.98, "Transformer branch", size=11, weight="bold", color=TOKENS_EDGE, ha="left")

    # CNN branch: two bottlenecks, FCUUp's map added inside the second.
    for part, xs, begin, add_x in (
        ("bottleneck", (1.08, 2.0, 2.92), 0.92, 3.86),
        ("fusion", (4.44, 5.88, 6.76), 4.28, 7.66),
    ):
        ends = [*xs[1:], add_x - 0.085]
        for number, (x, end) in enumerate(zip(xs, ends, strict=True), start=1):
            conv = getattr(getattr(block, part), f"conv{number}")
            canvas.box(
                x,
                conv_y,
                wide,
                high,
                left=f"{conv.kernel_size[0]}×{conv.kernel_size[1]} conv",
                edge=CNN_EDGE,
                fill=STAGES[0],
            )
            canvas.arrow((x + wide, middle), (end, middle))
            shape = show(calls.outputs[f"{name}.{part}.conv{number}"])
            canvas.text(x + wide / 2, conv_y - 0.1, shape, size=7.4, weight="bold")
        canvas.plus(add_x, middle)
        shortcut = conv_y - 0.42
        canvas.ax.plot([begin, begin, add_x], [middle, shortcut, shortcut], color=FAINT, lw=1.2, zorder=2)
        canvas.arrow((add_x, shortcut), (add_x, middle - 0.085), color=FAINT)
        canvas.text((begin + add_x) / 2, shortcut, "shortcut", size=7.4, color=FAINT, background="white")
    canvas.text(0.1, middle, show(calls.inputs[f"{name}.bottleneck"]), weight="bold", ha="left")
    canvas.arrow((0.78, middle), (1.08, middle))
    canvas.arrow((3.945, middle), (4.44, middle))
    canvas.plus(up_x, middle, color=UP)
    canvas.arrow((7.745, middle), (7.98, middle))
    canvas.text(8.2, middle + 0.3, show(calls.outputs[f"{name}.fusion"]), weight="bold", ha="right")

    # Transformer branch.
    tokens = calls.outputs[f"{name}.transformer"]
    token_mid = token_y + high / 2
    canvas.text(0.1, token_mid, show(calls.inputs["blocks.0.transformer"]), weight="bold", ha="left")
    canvas.arrow((0.88, token_mid), (down_x - 0.085, token_mid))
    canvas.plus(down_x, token_mid, color=DOWN)
    canvas.arrow((down_x + 0.085, token_mid), (3.0, token_mid))
    canvas.box(3.0, token_y, 1.9, high, left="attention, then MLP", edge=TOKENS_EDGE, fill=TOKENS)
    canvas.arrow((4.9, token_mid), (7.4, token_mid))
    canvas.text(8.2, token_mid, show(tokens), weight="bold", ha="right")

    # Couplings: (layer, shape after it), both from top to bottom; FCUUp runs upwards.
    ratio = model.config.tokens_to_map(model.config.stage(index))
    after = {
        part: show(calls.outputs[f"{name}.{part}"])
        for part in ("fcu_down.pool", "fcu_down.proj", "fcu_down.act", "fcu_up.proj", "fcu_up.act")
    }
    down = (
        (f"average pool {ratio}×{ratio}", after["fcu_down.pool"]),
        ("1×1 projection", after["fcu_down.proj"]),
        ("LayerNorm, GELU", after["fcu_down.act"]),
        ("class token in front", show(tokens)),
    )
    up = (
        (f"{model.config.upsample} upsampling ×{ratio}", show(calls.inputs[f"{name}.fusion.conv2"])),
        ("BatchNorm, ReLU", after["fcu_up.act"]),
        ("1×1 projection", after["fcu_up.proj"]),
        ("patch tokens", show(calls.inputs[f"{name}.fcu_up.proj"])),
    )
    layer_w, layer_h, first, step = 2.5, 0.26, 1.86, 0.53
    for x, title, layers, color, downward in (
        (down_x, "FCUDown", down, DOWN, True),
        (up_x, "FCUUp", up, UP, False),
    ):
        label_x = x - layer_w / 2 if downward else x + layer_w / 2
        canvas.text(
            label_x,
            first - 0.16,
            title,
            size=9.5,
            weight="bold",
            color=color,
            ha="left" if downward else "right",
        )
        for number, (layer, shape) in enumerate(layers):
            canvas.box(
                x - layer_w / 2,
                first + number * step,
                layer_w,
                layer_h,
                left=layer,
                right=shape,
                edge=color,
                fill="white",
            )
        bottoms = [first + number * step + layer_h for number in range(len(layers))]
        source, sink = (conv_y + high, token_mid - 0.085) if downward else (middle + 0.085, token_mid)
        above, below = [source, *bottoms], [first + number * step for number in range(len(layers))] + [sink]
        for begin, end in zip(above, below, strict=True):
            canvas.arrow(
                (x, begin) if downward else (x, end), (x, end) if downward else (x, begin), color=color
            )
    canvas.save(path)


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description="Draw the figures of docs/architecture.md.")
    parser.add_argument("--model", default="conformer_small_patch16_224")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    with torch.device("meta"):
        model = timm.create_model(args.model).eval()
    calls = trace(model, model.pretrained_cfg["input_size"])
    draw_network(calls, model, args.out / "architecture.png")
    draw_block(calls, model, args.out / "block.png")


if __name__ == "__main__":
    main()
