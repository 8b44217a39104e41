"""ONNX Runtime's own post-training quantization of the graph that mixq quantizes."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mixq.task import Inputs


def quantize(model: bytes, calibration: Sequence[Inputs]) -> bytes:
    """The ONNX model that `quantize_static` makes: pairs (QDQ), u8 activations, s8 weights per channel, min-max."""
    logging.getLogger().setLevel(logging.ERROR)  # it logs advice to the root
    with TemporaryDirectory(prefix="mixq-") as folder:
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "made.onnx"
        quant_pre_process(onnx.load_model_from_string(model), ready, auto_merge=True)
        quantize_static(
            ready,
            made,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return made.read_bytes()


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # the base has no types
    """Hands out the batches, then None."""

    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._left: Iterator[Inputs] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._left, None)
        return None if batch is None else dict(batch)
