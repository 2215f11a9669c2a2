"""Weights, run by PyTorch."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch
from torch import Tensor, nn

from conformer_vision.inference.runtimes.in_place import compute_in_place
from conformer_vision.inference.runtimes.network import heads, heads_and_features, resolve_device
from conformer_vision.memory import check_batch
from conformer_vision.models import Conformer, Ensemble
from conformer_vision.models.pointwise import pointwise_is_faster, use_pointwise
from conformer_vision.runs import ModelSource
from conformer_vision.runtime.base import Floats, Outputs, Runtime
from conformer_vision.weights import build_empty, load_model, read_class_means


class WeightsRuntime(Runtime):
    """A model of timm's registry; a Conformer is folded and computes in place.

    Args:
        source: Weights, a checkpoint or published weights.
        device: ``auto`` or a torch device.

    Raises:
        UserError: As `load_model`, or a device that this machine does not have.
    """

    def __init__(self, source: ModelSource, device: str | torch.device) -> None:
        self._device = resolve_device(device)
        self.device = str(self._device)
        model, self.spec = load_model(source)
        self.class_means = read_class_means(source)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        if isinstance(model, Conformer) and not model.folded:
            model = model.fold()
        if isinstance(model, Ensemble):
            for number, member in enumerate(model.members):  # one by one, to hold one more in memory, not all
                if isinstance(member, Conformer) and not member.folded:
                    model.members[number] = member.fold()
        if isinstance(model, Conformer | Ensemble):
            compute_in_place(model)
        self._model = model.to(self._device)  # private: hooks would see maps that are overwritten
        if self.on_cpu:  # 7 to 17 % less time, measured for nano and tiny at 32 and 224 pixels
            self._model = self._model.to(memory_format=torch.channels_last)
            if pointwise_is_faster(self._model):
                use_pointwise(self._model)

    @property
    def network(self) -> nn.Module:
        """The model itself, to look at."""
        return self._model

    def plain(self) -> nn.Module:
        """Return the network as it is exported, with the weights of this one, which it shares."""
        folded = any(isinstance(module, Conformer) for module in self._model.modules())
        network = build_empty(replace(self.spec, folded=folded))
        network.load_state_dict(self._model.state_dict(), assign=True)
        return network.eval()

    def digest(self) -> str:
        """Return a hash of all weights, as they compute."""
        found = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    @torch.inference_mode()
    def outputs(self, images: Floats) -> Outputs:
        """Compute the logits and the pooled features."""
        found = heads_and_features(self._model, torch.from_numpy(images).to(self._device))
        features = None if found.features is None else to_array(found.features)
        return Outputs({head: to_array(logits) for head, logits in found.logits.items()}, features)

    def check_batch(self, shape: tuple[int, ...], *, batches: int) -> None:
        """Check that main memory holds the computation of images (B, C, H, W)."""
        check_batch(lambda: self._model, _compute, shape, batches=batches)


def to_array(tensor: Tensor) -> Floats:
    """Return a tensor's values in float32, from whatever device."""
    values: Floats = tensor.float().cpu().numpy()
    return values


def _compute(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        heads(model, images)
