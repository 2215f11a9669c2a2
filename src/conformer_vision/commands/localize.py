"""The subcommand ``localize``: boxes and masks of classes, printed image by image and written at the end.

Ctrl-C and SIGTERM end it early: what was found until then is written.
"""

from __future__ import annotations

import os
import signal
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
from conformer_vision.commands.output import name_broken
from conformer_vision.console import note, say
from conformer_vision.extras import check_installed
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser

if TYPE_CHECKING:
    from conformer_vision.explain.localization import Fit, Localization


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    add_model_and_images(parser, exports=False)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="New folder for the results.")
    parser.add_argument(
        "--method",
        type=str | None,
        default=None,
        help="Method of the heat maps, as for explain; by default gradient-rollout for a Conformer, cam for "
        "a ResNet.",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        type=str,
        default=None,
        help="Classes to find in every image; its most probable by default.",
    )
    parser.add_argument("--top_k", type=int, default=1, help="Number of classes per image without --classes.")
    parser.add_argument(
        "--threshold",
        type=float | None,
        help="Share of the strongest evidence in an image that a pixel needs; the method's own by default.",
    )
    parser.add_argument(
        "--truth",
        metavar="COCO.json",
        type=str | None,
        help="Boxes of some of the images, by file name, on which the threshold is fitted instead.",
    )
    parser.add_argument(
        "--crop", action="store_true", help="Show the model what predict shows it, not whole images."
    )
    add_heat_maps(parser)
    add_inference(parser)
    add_input_size(parser)
    add_arch(parser)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    check_installed("scipy")
    from conformer_vision.explain.explainer import Explainer
    from conformer_vision.explain.localization import default_method, make_localizer
    from conformer_vision.explain.localization_folder import check_new, write_folder
    from conformer_vision.files import make_folder
    from conformer_vision.runtime.inputs import named_images

    check_new(options.out)
    model, inputs = split_inputs(options.model, options.inputs)
    given = (image.name for image in named_images(inputs))
    names = list({os.path.abspath(name): name for name in given}.values())  # an image given twice is one
    explainer = Explainer(
        model,
        device=options.device,
        input_size=options.input_size,
        whole=not options.crop,
        output_stride=options.output_stride,
        arch=options.arch,
    )
    if model is None:
        note(f"using the bundled weights {explainer.path}")
    localizer, fit = make_localizer(
        explainer,
        heat_map_options(options, method=options.method or default_method(explainer)),
        threshold=options.threshold,
        truth=options.truth,
        names=names,
    )
    if fit is not None:
        _print_fit(fit)
    found: list[Localization] = []
    stopped = 0
    try:
        for localization in localizer.localize(names, classes=options.classes, top_k=options.top_k):
            if not found:  # nothing is left to refuse
                folder = make_folder(options.out)
            found.append(localization)
            _print(localization)
    except KeyboardInterrupt as interrupt:
        note(f"stopped after {len(found):,} of {len(names):,} images")
        stopped = 128 + getattr(interrupt, "signal", signal.SIGINT)
        if not found:
            return stopped
    status = name_broken([each.error for each in found if each.error is not None])
    method = localizer.options.method
    path = write_folder(found, folder, explainer.spec, method=method, threshold=localizer.threshold)
    say(f"boxes and masks: {path}")
    return stopped or status


def _print_fit(fit: Fit) -> None:
    for line in fit.skipped:
        note(f"not fitted on: {line}")
    say(
        f"threshold {fit.threshold:g}, fitted on {fit.boxes:,} classes in {fit.images:,} images: "
        f"mean IoU {fit.mean_iou:.1%}"
    )


def _print(localization: Localization) -> None:
    if localization.error is not None:
        return
    answers = [
        f"{region.label} {region.score:.1%} at {region.box.x:g},{region.box.y:g} "
        f"{region.box.width:g}x{region.box.height:g}"
        for region in localization.regions
    ]
    say(f"{localization.name}: {', '.join(answers) or 'no evidence'}")
