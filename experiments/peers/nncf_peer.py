"""NNCF's post-training quantization of the graph that mixq quantizes, on OpenVINO opened as mixq opens it."""

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import openvino

from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.runtimes import Executable, Kernel
from mixq.runtimes.openvino import conversion_count
from mixq.task import Inputs, Outputs

PRESETS = ("performance", "mixed")


def load_nncf() -> Any:
    """The module nncf, without telemetry and silent. Raises InputError where it is not installed."""
    os.environ.setdefault("NNCF_CI", "1")  # the switch that leaves its telemetry out (nncf/telemetry/wrapper.py, 3.4)
    try:
        nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise InputError(
            f"this comparison needs nncf: pip install -c constraints.txt -e '.[peers]' ({error})"
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def quantize(nncf: Any, model: bytes, calibration: Sequence[Inputs], preset: str) -> Any:
    """The openvino.Model that NNCF makes of the ONNX `model`: one image at a time, as its documentation does it."""
    rows = list(single_rows(calibration))
    with redirect_stdout(StringIO()):  # its progress bars
        return nncf.quantize(
            openvino.Core().read_model(model),
            nncf.Dataset(rows),
            preset=nncf.QuantizationPreset(preset),
            subset_size=len(rows),
            fast_bias_correction=True,
        )


def single_rows(batches: Sequence[Inputs]) -> Iterator[Inputs]:
    """The batches cut into batches of one row."""
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            yield {name: np.ascontiguousarray(value[row : row + 1]) for name, value in batch.items()}


class OpenVinoModel(Executable):
    """An openvino.Model, compiled for static shapes with the properties that mixq's runtime has (f32 for the rest)."""

    def __init__(self, model: Any, threads: int) -> None:
        """`model` stays as it is."""
        self._model, self._threads = model, threads
        self._requests: dict[tuple[int, ...], Any] = {}

    def run(self, inputs: Inputs) -> Outputs:
        """Outputs by name."""
        request = self._request(inputs)
        request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()}, share_inputs=True)
        names = [str(output.get_any_name()) for output in self._model.outputs]
        return {name: request.get_output_tensor(i).data.copy() for i, name in enumerate(names)}

    def bind(self, inputs: Inputs) -> Callable[[], None]:
        """A call that infers and does nothing else."""
        request = self._request(inputs)
        for name, value in inputs.items():
            request.get_tensor(name).data[:] = value
        infer = request.infer
        return lambda: infer(None) and None

    def audit(self, layers: Sequence[Layer], inputs: Inputs, *, timed: bool = True) -> list[Kernel]:
        """Nothing: the peer is timed, not audited."""
        return []

    def conversions(self, inputs: Inputs) -> int:
        """Executed nodes that turn floats into codes or back."""
        return conversion_count(self._request(inputs).get_compiled_model())

    def compiled(self, inputs: Inputs, **properties: Any) -> Any:
        """The openvino.CompiledModel for inputs of these shapes."""
        model = self._model.clone()
        model.reshape({name: list(value.shape) for name, value in inputs.items()})
        common = {
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        return openvino.Core().compile_model(model, "CPU", {**common, **properties})

    def _request(self, inputs: Inputs) -> Any:
        shape = tuple(size for value in inputs.values() for size in value.shape)
        if shape not in self._requests:
            self._requests[shape] = self.compiled(inputs).create_infer_request()
        return self._requests[shape]
