"""Arguments of subcommands that take a model, or none, and images after it."""

from __future__ import annotations

import os

from jsonargparse import ArgumentParser

from conformer_vision.errors import UserError, is_url


def add_model_and_images(parser: ArgumentParser, *, exports: bool) -> None:
    """Add the arguments that `split_inputs` takes apart.

    Args:
        parser: Gets the arguments.
        exports: Whether the model may be an exported file.
    """
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="[MODEL] IMAGE_OR_FOLDER",
        help="Images or folders of images. A model first, or with --model; without one the bundled weights "
        "are used.",
    )
    kinds = "checkpoint, ONNX or OpenVINO file," if exports else "checkpoint,"
    parser.add_argument(
        "--model",
        type=str | None,
        help=f"Run folder, weights, {kinds} or the name of published weights.",
    )


def split_inputs(model: str | None, inputs: list[str]) -> tuple[str | None, list[str]]:
    """Return the model, None for the bundled weights, and the images.

    Raises:
        UserError: A model without images, or one among the images.
    """
    from conformer_vision.runs import is_run_folder

    first, rest = inputs[0], inputs[1:]
    # A first name that does not exist is a model, so that a mistyped run does not pass for an image.
    names_image = is_url(first) or os.path.isfile(first) or _holds_images(first)
    names_model = _is_model(first) or (bool(rest) and not names_image)
    if model is None and names_model:
        model, inputs = first, rest
    if not inputs:
        raise UserError(f"{first} is a model; give images or folders of images after it")
    for name in inputs:
        if _is_model(name) or is_run_folder(name):
            remedy = (
                f"give it first, or with --model {name}" if model is None else f"the model here is {model}"
            )
            raise UserError(f"{name} is a model, not an image; {remedy}")
    return model, inputs


def _is_model(name: str) -> bool:
    """Tell whether a name means a model; that of an image does not, and is not looked up in timm."""
    from conformer_vision.data.find import is_image_name
    from conformer_vision.runs import is_model

    return (os.path.isdir(name) or not is_image_name(os.path.basename(name))) and is_model(name)


def _holds_images(folder: str) -> bool:
    """Tell whether it is a folder with images in or below it."""
    from conformer_vision.data.find import walk_images

    return os.path.isdir(folder) and any(found.images for found in walk_images(folder))
