"""int8 with onnxruntime's static quantisation: QDQ pairs, weights per channel, ranges from real images.

Convolutions and linear layers are quantised. Everything between them stays in float, in particular the sums:
every coupled block doubles the class token, so that 8 bits for the tokens' sum would leave little resolution
for the patch tokens. If the answers still change too much, the parts of the network with the largest effect
stay in float; the effect is determined for one part at a time.
"""

from __future__ import annotations

import copy
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformer_vision.errors import UserError, option
from conformer_vision.runtime.base import INPUT

from .compare import relative_difference
from .graph import quiet

LARGEST_ERROR = 0.1
"""Largest error of the logits, relative to their norm, before parts are kept in float."""
MOST_PARTS = 0.3
"""Largest share of the parts that is kept in float."""
_COMPARED = 8
"""Number of images that the effect of a part is determined on."""
_OPERATORS = ["Conv", "Gemm", "MatMul"]


def quantize(
    proto: Any, calibration: Sequence[Tensor], *, signed: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """Quantise a model, and return it with the parts that stay in float.

    Args:
        proto: ``onnx.ModelProto`` in float32 with nodes named ``PART/OPERATOR``.
        calibration: Prepared images, each (B, C, H, W).
        signed: Store activations of both signs as int8 around 0, which OpenVINO computes with; otherwise all
            are uint8 with a zero point, which is finer and costs onnxruntime nothing.

    Raises:
        UserError: No images.
    """
    if not calibration:
        raise UserError(
            f"precision int8 needs images to calibrate with: give labelled ones with {option('data')}"
        )
    with tempfile.TemporaryDirectory(prefix="conformer-vision-") as folder, quiet():
        quantizer = _Quantizer(proto, calibration, Path(folder), signed=signed)
        parts = quantizer.parts
        kept: list[str] = []
        quantized = quantizer.quantized(kept)
        if quantizer.error(quantized) > LARGEST_ERROR:
            alone = {
                part: quantizer.error(quantizer.quantized([other for other in parts if other != part]))
                for part in parts
            }
            for part in sorted(parts, key=alone.__getitem__, reverse=True)[: int(MOST_PARTS * len(parts))]:
                kept.append(part)
                quantized = quantizer.quantized(kept)
                if quantizer.error(quantized) <= LARGEST_ERROR:
                    break
    return quantized, tuple(kept)


class _Quantizer:
    """One model that is quantised several times with the same ranges."""

    def __init__(self, proto: Any, calibration: Sequence[Tensor], folder: Path, *, signed: bool) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, create_calibrator, quant_pre_process

        source, prepared = folder / "float.onnx", folder / "prepared.onnx"
        onnx.save(proto, source)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        self._model = onnx.load(prepared)
        calibrator = create_calibrator(
            prepared, _OPERATORS, augmented_model_path=str(folder / "augmented.onnx")
        )
        inputs = ({INPUT: batch.numpy()} for batch in calibration)
        calibrator.collect_data(SimpleNamespace(get_next=lambda: next(inputs, None)))
        self._ranges = calibrator.compute_data()
        self._options: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
        if signed:
            kind = {"quant_type": QuantType.QInt8, "symmetric": True}
            self._options["TensorQuantOverrides"] = {
                name: [dict(kind)]
                for name, data in self._ranges.data.items()
                if float(np.min(data.range_value[0])) < 0
            }
        self._images = torch.cat(list(calibration))[:_COMPARED].numpy()
        self._expected = self._logits(self._model)
        constants = {tensor.name for tensor in self._model.graph.initializer}
        # Products of two activations stay in float: queries by keys, attention by values.
        self._attention: list[str] = []
        self.parts: dict[str, list[str]] = defaultdict(list)
        """Part of the network that can be quantised -> its nodes, in their order."""
        for node in self._model.graph.node:
            if node.op_type == "MatMul" and node.input[1] not in constants:
                self._attention.append(node.name)
            elif node.op_type in _OPERATORS:
                self.parts[node.name.rpartition("/")[0]].append(node.name)

    def quantized(self, kept: Sequence[str]) -> Any:
        """Return the model with all parts in int8 except ``kept``."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        quantizer = QDQQuantizer(
            copy.deepcopy(self._model),
            True,  # per channel
            False,  # the full range of 8 bits
            QuantType.QInt8,
            QuantType.QUInt8,
            self._ranges,
            [],
            [name for part in kept for name in self.parts[part]] + self._attention,
            _OPERATORS,
            copy.deepcopy(self._options),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # as the ONNX standard requires
        return quantizer.model.model

    def error(self, quantized: Any) -> float:
        """Return the largest error of an image's logits, relative to the norm of the float model's."""
        return relative_difference(self._logits(quantized).numpy(), self._expected.numpy())

    def _logits(self, model: Any) -> Tensor:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return torch.from_numpy(session.run(None, {INPUT: self._images})[0])
