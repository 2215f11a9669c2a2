"""int8 with onnxruntime's static quantisation: QDQ pairs, weights per channel, ranges from real images.

Convolutions and linear layers are quantised. Everything between them stays in float, in particular the sums:
every coupled block doubles the class token, so that 8 bits for the tokens' sum would leave little resolution
for the patch tokens. If the answers still change too much, the parts of the network with the largest effect
stay in float; the effect is determined for one part at a time.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from conformer_vision.errors import UserError
from conformer_vision.inference.runtimes.base import INPUT

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
        raise UserError("precision int8 needs images to calibrate with: give labelled ones with --data")
    with tempfile.TemporaryDirectory(prefix="conformer-vision-") as folder, _quiet():
        quantizer = _Quantizer(proto, calibration, Path(folder), signed=signed)
        parts = quantizer.parts()
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
    """Quantises one model several times with the same ranges."""

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
        calibrator.collect_data(_Reader(calibration))
        self._ranges = calibrator.compute_data()
        self._options: dict[str, Any] = {"ActivationSymmetric": False, "WeightSymmetric": True}
        if signed:
            kind = {"quant_type": QuantType.QInt8, "symmetric": True}
            self._options["TensorQuantOverrides"] = {
                name: [dict(kind)]
                for name, data in self._ranges.data.items()
                if float(np.min(data.range_value[0])) < 0
            }
        self._images = np.concatenate([batch.numpy() for batch in calibration])[:_COMPARED]
        self._expected = self._logits(self._model)

    def parts(self) -> list[str]:
        """Return the parts of the network that can be quantised, in their order."""
        return list(self._nodes())

    def quantized(self, kept: Sequence[str]) -> Any:
        """Return the model with all parts in int8 except ``kept``."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        nodes = self._nodes()
        quantizer = QDQQuantizer(
            copy.deepcopy(self._model),
            True,  # per channel
            False,  # the full range of 8 bits
            QuantType.QInt8,
            QuantType.QUInt8,
            self._ranges,
            [],
            [name for part in kept for name in nodes[part]] + self._attention(),
            _OPERATORS,
            copy.deepcopy(self._options),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()  # as the ONNX standard requires
        return quantizer.model.model

    def error(self, quantized: Any) -> float:
        """Return the largest error of an image's logits, relative to the norm of the float model's."""
        difference = np.linalg.norm(self._logits(quantized) - self._expected, axis=1)
        return float((difference / np.linalg.norm(self._expected, axis=1)).max())

    def _attention(self) -> list[str]:
        """Name the products of two activations, which stay in float: queries by keys, attention by values."""
        constants = {tensor.name for tensor in self._model.graph.initializer}
        return [
            node.name
            for node in self._model.graph.node
            if node.op_type == "MatMul" and node.input[1] not in constants
        ]

    def _nodes(self) -> dict[str, list[str]]:
        attention = set(self._attention())
        parts: dict[str, list[str]] = defaultdict(list)
        for node in self._model.graph.node:
            if node.op_type in _OPERATORS and node.name not in attention:
                parts[node.name.rpartition("/")[0]].append(node.name)
        return parts

    def _logits(self, model: Any) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session.run(None, {INPUT: self._images})[0]


class _Reader:
    """Feeds images to onnxruntime's calibrators."""

    def __init__(self, calibration: Sequence[Tensor]) -> None:
        self._batches = iter(calibration)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input, or None."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (batch := self.get_next()) is not None:
            yield batch


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence onnxruntime's advice, which goes to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
