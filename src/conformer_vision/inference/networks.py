"""Networks that give logits for images, whatever file holds them: a run's weights, or an export of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from conformer_vision.errors import UserError, first_line
from conformer_vision.extras import require
from conformer_vision.inference.untrusted import check_export_archive, check_torchscript
from conformer_vision.models import Conformer
from conformer_vision.spec import METADATA_KEY, ModelSpec
from conformer_vision.weights import load_model

FUSED = "fused"
INPUT = "images"
OUTPUTS = {FUSED: "logits", "conv": "conv_logits", "trans": "trans_logits"}
"""Head -> name of the output of an exported file, in order. A network with one head has the first alone."""
PRECISION_KEY = "precision"
_ORDER = ("conv", "trans", FUSED)


class Network(Protocol):
    """Logits of images."""

    spec: ModelSpec
    device: torch.device
    """Where the logits are."""
    parameters: int | None
    """Parameters as trained; None where the file does not say."""

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head, each (B, K) float32: ``fused``, and ``conv`` and ``trans`` of a Conformer.

        Args:
            images: (B, C, H, W) as the spec's preprocessing gives them.
        """


def open_network(path: str | Path, *, device: str | torch.device = "auto") -> Network:
    """The network of a run folder, a .safetensors file or an exported file, told by its suffix.

    Args:
        path: as ``conformer-vision train`` or ``export`` wrote it, or the name of a model of timm, whose
            published weights are taken.
        device: ``auto`` (CUDA where there is one and the file can use it), or a torch device.

    Raises:
        UserError: no such file, not what its suffix says, no model spec in it, no library to run it with
            (the line names the pip command), or a device that cannot be used.
    """
    path = Path(path)
    opener = _OPENERS.get(path.suffix.lower())
    if opener is not None and path.is_file():
        return opener(path, device)
    return WeightsNetwork(*load_model(path), device)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; other names are torch's.

    Raises:
        UserError: no such device on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=(resolved := torch.device(device)))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {str(device)!r} cannot be used here ({first_line(error)}); 'cpu' always can"
        ) from error
    if resolved.type == "meta":
        raise UserError("device 'meta' computes nothing; use 'auto', 'cpu' or 'cuda'")
    return resolved


class WeightsNetwork:
    """A trained model of timm's registry; a Conformer is folded."""

    def __init__(self, model: nn.Module, spec: ModelSpec, device: str | torch.device) -> None:
        self.device = resolve_device(device)
        self.spec = spec
        self.parameters: int | None = sum(parameter.numel() for parameter in model.parameters())
        if isinstance(model, Conformer) and not model.folded:
            model = model.fold()
        self.model: nn.Module = model.to(self.device)
        if self.device.type == "cpu":  # 7 to 17 % less time, measured for nano and tiny at 32 and 224 pixels
            self.model = self.model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        return {head: logits.float() for head, logits in heads(self.model, images.to(self.device)).items()}


def heads(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits (B, K) of every head of a model, the prediction last."""
    if not isinstance(model, Conformer):
        return {FUSED: model(images)}
    branches = model.forward_branches(images)
    return {**branches._asdict(), FUSED: model.fuse_logits(branches)}


class OnnxNetwork:
    """An ONNX file, run by onnxruntime on the CPU or on CUDA."""

    parameters: int | None = None

    def __init__(self, path: Path, device: str | torch.device) -> None:
        runtime = require("onnxruntime")
        self.device = torch.device("cpu")  # onnxruntime brings its outputs there
        cuda = "CUDAExecutionProvider" in runtime.get_available_providers()
        wanted = torch.device("cuda" if cuda else "cpu") if device == "auto" else torch.device(device)
        if wanted.type not in ("cpu", "cuda") or (wanted.type == "cuda" and not cuda):
            raise UserError(
                f"device {str(device)!r} cannot be used: this onnxruntime has the CPU{' and CUDA' * cuda}"
            )
        providers = ["CPUExecutionProvider"]
        if wanted.type == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = runtime.InferenceSession(_readable(path), options, providers=providers)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except UserError:
            raise
        except Exception as error:  # onnxruntime has a dozen kinds of its own
            raise UserError(f"{path}: onnxruntime cannot run it ({first_line(error)})") from error
        self.spec = _spec(metadata.get(METADATA_KEY), path)
        self.precision = metadata.get(PRECISION_KEY)
        names = [output.name for output in self._session.get_outputs()]
        self._heads = _heads(names, path)
        if [put.name for put in self._session.get_inputs()] != [INPUT]:
            raise UserError(f"{path} has not the one input {INPUT!r}; export the model again")

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        outputs = self._session.run([OUTPUTS[head] for head in self._heads], {INPUT: images.cpu().numpy()})
        return {head: torch.from_numpy(output) for head, output in zip(self._heads, outputs, strict=True)}


class OpenVinoNetwork:
    """An OpenVINO model (.xml, with its weights in the .bin beside it), run on the CPU."""

    parameters: int | None = None

    def __init__(self, path: Path, device: str | torch.device) -> None:
        openvino = require("openvino")
        self.device = torch.device("cpu")
        if device != "auto" and torch.device(device).type != "cpu":
            raise UserError(f"device {str(device)!r} cannot be used with {path}; OpenVINO files run on 'cpu'")
        if not path.with_suffix(".bin").is_file():
            raise UserError(f"{path.with_suffix('.bin')} does not exist; it holds the weights of {path.name}")
        try:
            core = openvino.Core()
            model = core.read_model(path)
            info = {
                key: str(model.get_rt_info([METADATA_KEY, key]).value)
                for key in ("spec", PRECISION_KEY)
                if model.has_rt_info([METADATA_KEY, key])
            }
            # Left to itself OpenVINO takes bfloat16 where the processor has it.
            hint = "bf16" if info.get(PRECISION_KEY) == "bf16" else "f32"
            self._compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                },
            )
        except RuntimeError as error:
            raise UserError(f"{path}: OpenVINO cannot run it ({first_line(error)})") from error
        self.spec = _spec(info.get("spec"), path)
        self.precision = info.get(PRECISION_KEY)
        self._heads = _heads([name for put in self._compiled.outputs for name in put.names], path)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        result = self._compiled({INPUT: images.cpu().contiguous().numpy()})
        return {head: torch.tensor(result[OUTPUTS[head]]).float() for head in self._heads}


class TorchExportNetwork:
    """A file of ``torch.export.save``."""

    parameters: int | None = None

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self.device = resolve_device(device)
        check_export_archive(path)
        extra = {METADATA_KEY: ""}
        try:
            program = torch.export.load(path, extra_files=extra)
            self._module = program.module().to(self.device)
        except Exception as error:  # torch raises whatever the first damaged part leads to
            raise UserError(f"{path}: torch.export cannot load it ({first_line(error)})") from error
        self.spec = _spec(extra[METADATA_KEY], path)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        return _named(self._module(images.to(self.device)))


class TorchScriptNetwork:
    """A TorchScript file."""

    parameters: int | None = None

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self.device = resolve_device(device)
        check_torchscript(path)
        extra = {METADATA_KEY: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated
                self._module = torch.jit.load(path, map_location=self.device, _extra_files=extra).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path}: torch.jit cannot load it ({first_line(error)})") from error
        self.spec = _spec(_text(extra[METADATA_KEY]), path)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per head."""
        return _named(self._module(images.to(self.device)))


_OPENERS: dict[str, Callable[[Path, str | torch.device], Network]] = {
    ".onnx": OnnxNetwork,
    ".xml": OpenVinoNetwork,
    ".pt2": TorchExportNetwork,
    ".torchscript": TorchScriptNetwork,
}


def _named(outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    found = dict(zip(OUTPUTS, outputs, strict=False))  # one head or three
    return {head: found[head] for head in _ORDER if head in found}


def _heads(names: list[str], path: Path) -> list[str]:
    found = [head for head in _ORDER if OUTPUTS[head] in names]
    if FUSED not in found:
        raise UserError(f"{path} has no output {OUTPUTS[FUSED]!r}; export the model again")
    return found


def _spec(text: str | None, path: Path) -> ModelSpec:
    if not text:
        raise UserError(f"{path} has no model spec; 'conformer-vision export' writes one into its files")
    try:
        return ModelSpec.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _readable(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return str(path)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
