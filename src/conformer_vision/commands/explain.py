"""The subcommand ``explain``: heat maps of images, as PNG and on one page.

Ctrl-C and SIGTERM end it early: the page is written with what was explained until then.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.model_and_images import add_model_and_images, split_inputs
from conformer_vision.commands.options import (
    add_arch,
    add_heat_maps,
    add_inference,
    add_input_size,
    heat_map_options,
)
from conformer_vision.console import lost, note, say
from conformer_vision.errors import UserError
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser

if TYPE_CHECKING:
    from conformer_vision.explain.explainer import ClassAnswer

PAGE = "explained.html"
_MOST_ON_PAGE = 200
"""Images on the page: each takes about 250 kB."""
_CHOICE = 3
"""Classes to choose from on the page, where none are named."""


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    add_model_and_images(parser, exports=False)
    parser.add_argument(
        "--out", metavar="FOLDER", type=str, default="explained", help="Folder for the files."
    )
    parser.add_argument(
        "--method",
        type=str,
        default="cam",
        help="Of the PNG overlays: cam, token-cam, attention-cam, rollout, gradient-rollout, occlusion, "
        "gradcam, gradcam++, xgradcam or layercam (docs/explain.md).",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        type=str,
        default=None,
        help="Classes to explain; the most probable by default.",
    )
    parser.add_argument(
        "--top_k", type=int, default=1, help="Number of classes per image, without --classes."
    )
    add_heat_maps(parser)
    parser.add_argument(
        "--whole", action="store_true", help="Show the network the whole image, without a crop."
    )
    parser.add_argument(
        "--couplings",
        action="store_true",
        help="Also draw what the branches exchange in every block, and the same with the couplings cut.",
    )
    parser.add_argument(
        "--cut", nargs="+", type=int, default=None, help="Blocks, from 2, to cut there; all by default."
    )
    add_inference(parser)
    add_input_size(parser)
    add_arch(parser)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    from conformer_vision.explain import Explainer, explained
    from conformer_vision.explain.figure import save_couplings
    from conformer_vision.files import atomic_path, make_folder
    from conformer_vision.report.explained import Panel, panel, write_explained
    from conformer_vision.runtime.inputs import named_images

    if options.top_k < 1:
        raise UserError(f"--top_k {options.top_k}: must be 1 or more")
    if options.cut is not None and not options.couplings:
        raise UserError("--cut is for the figure of the couplings; add --couplings")
    model, inputs = split_inputs(options.model, options.inputs)
    images = [
        image.name for image in named_images(inputs)
    ]  # refuses a folder without images, before any work
    explainer = Explainer(
        model,
        device=options.device,
        input_size=options.input_size,
        whole=options.whole,
        output_stride=options.output_stride,
        arch=options.arch,
    )
    if model is None:
        note(f"using the bundled weights {explainer.path}")
    chosen = None if options.classes is None else explainer.class_numbers(options.classes)
    how = heat_map_options(options, method=options.method)
    out, names = make_folder(options.out), FileNames()
    on_page: list[Panel] = []
    broken = done = stopped = 0
    try:
        for shown in explainer.show(images):
            if shown.image is None:
                broken += 1
                note(f"skipped: {shown.error}")
            else:
                explanation = explainer.explanation(shown, chosen or shown.best(options.top_k), how)
                stem = names.stem(shown.name)
                for answer in explanation.classes:
                    path = out / f"{stem}-{slug(answer.label)}-{options.method}.png"
                    say(f"{shown.name}: {_answer(answer)}, see {path}")
                    with atomic_path(path) as temporary:
                        explained(explanation, answer.label).save(temporary, "png")
                if options.couplings:
                    path = out / f"{stem}-couplings.png"
                    save_couplings(explainer, shown, path, cut=options.cut)
                    say(f"{shown.name}: couplings, see {path}")
                if len(on_page) < _MOST_ON_PAGE:
                    classes = chosen or shown.best(max(options.top_k, _CHOICE))
                    on_page.append(panel(explainer, shown, classes))
            done += 1
            if lost():
                break  # the reader has enough
    except KeyboardInterrupt as interrupt:
        note(f"stopped after {done:,} of {len(images):,} images")
        stopped = 128 + getattr(interrupt, "signal", signal.SIGINT)
    if on_page:
        write_explained(out / PAGE, on_page, model=str(explainer.path))
        left = done - broken - len(on_page)
        say(
            f"page: {out / PAGE}"
            + (f" (the first {len(on_page)} images; {left:,} have PNG files only)" if left > 0 else "")
        )
    if broken:
        note(f"{broken} of the images could not be read")
    return stopped or (1 if broken else 0)


def _answer(answer: ClassAnswer) -> str:
    """Return a class with the probability of each head, such as "tabby 30.7% (conv 19.7%, trans 31.5%)"."""
    shares = {head: f"{head} {share:.1%}" for head, share in answer.probabilities.items()}
    fused = f"{answer.label} {answer.probabilities['fused']:.1%}"
    branches = ", ".join(text for head, text in shares.items() if head != "fused")
    return f"{fused} ({branches})" if branches else fused


class FileNames:
    """Names of files for images: those of the images, told apart where two are alike."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def stem(self, name: str) -> str:
        """Return the beginning of a file's name for an image."""
        stem = slug(Path(name).stem) or "image"
        self._used[stem.casefold()] += 1
        number = self._used[stem.casefold()]
        return stem if number == 1 else self.stem(f"{stem}~{number}")


def slug(text: str) -> str:
    """Return a text as a part of a file's name on every system."""
    return re.sub(r"[^\w.~-]+", "-", text).strip("-.")[:60]
