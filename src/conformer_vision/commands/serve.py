"""The subcommand ``serve``: answer over HTTP with a trained model."""

from __future__ import annotations

from dataclasses import fields

from jsonargparse import ArgumentParser, Namespace

from conformer_vision.commands.options import (
    add_arch,
    add_inference,
    add_input_size,
    add_rejecting,
    add_runtime,
)
from conformer_vision.console import note
from conformer_vision.extras import check_installed
from conformer_vision.parsing import Parser
from conformer_vision.parsing import build_parser as plain_parser
from conformer_vision.serve.limits import Limits

_BOUNDS = {
    "max_batch": "Images in one forward pass.",
    "max_wait_ms": "Milliseconds that a batch waits at most for images that are being decoded.",
    "max_queue": "Images that are decoded or wait; further ones are refused.",
    "max_body_mb": "Megabytes of the body of a request.",
    "max_megapixels": "Millions of pixels of an image.",
    "deadline_seconds": "From the arrival of a request to its answer.",
}


def build_parser() -> Parser:
    """Build the parser of the subcommand."""
    parser = plain_parser()
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        type=str,
        default=None,
        help="Run folder, weights, checkpoint, ONNX or OpenVINO file, or the name of published weights; the "
        "bundled weights by default.",
    )
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen at.")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen at; 0 for any free one.")
    for name, text in _BOUNDS.items():
        default = getattr(Limits, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=text)
    parser.add_argument(
        "--max_images",
        type=int | None,
        default=None,
        help=f"Images of one request; {Limits.max_images} by default, or --max_queue if that is less.",
    )
    parser.add_argument(
        "--drain_seconds",
        type=float,
        default=30.0,
        help="Time to end the requests that have begun, at SIGTERM.",
    )
    parser.add_argument(
        "--api_key_file",
        metavar="FILE",
        type=str | None,
        default=None,
        help="Keys that requests have to show, one per line.",
    )
    parser.add_argument(
        "--ssl_certfile", metavar="FILE", type=str | None, default=None, help="Certificate, for HTTPS."
    )
    parser.add_argument(
        "--ssl_keyfile", metavar="FILE", type=str | None, default=None, help="Its private key."
    )
    parser.add_argument(
        "--no_explain", action="store_true", help="Load no second copy of the model for explanations."
    )
    add_inference(parser)
    add_runtime(parser)
    add_input_size(parser)
    add_arch(parser)
    add_rejecting(parser)
    return parser


def run(options: Namespace, parser: ArgumentParser) -> int:
    """Run the subcommand; return the exit status."""
    check_installed("starlette", "uvicorn", "prometheus_client", "python_multipart")
    from conformer_vision.runs import find_model
    from conformer_vision.serve.keys import Keys
    from conformer_vision.serve.lifecycle import Address, serve
    from conformer_vision.serve.models import ModelOptions
    from conformer_vision.serve.service import Service

    bounds = {each.name: options[each.name] for each in fields(Limits)}
    if bounds["max_images"] is None:
        bounds["max_images"] = max(min(Limits.max_images, options.max_queue), 1)
    limits = Limits(**bounds)
    address = Address(**{each.name: options[each.name] for each in fields(Address)})
    keys = None if options.api_key_file is None else Keys(options.api_key_file)
    if options.model is not None:
        find_model(options.model, arch=options.arch)  # before anything listens
    model = ModelOptions(
        options.model,
        device=options.device,
        input_size=options.input_size,
        arch=options.arch,
        reject=not options.no_reject,
        coverage=options.coverage,
        conformal=options.conformal,
        tta=options.tta,
        runtime=options.runtime,
        precision=options.precision,
        explain=not options.no_explain,
    )
    if not address.is_local and keys is None:
        note(f"--host {address.host}: whoever reaches it may use the server; --api_key_file asks for a key")
    return serve(Service(model.load, limits=limits, keys=keys), address)
