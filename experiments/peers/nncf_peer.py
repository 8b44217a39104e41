"""NNCF's post-training quantization of the graph that mixq quantizes, on OpenVINO opened as mixq opens it."""

import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import openvino

from mixq.batches import concatenated
from mixq.dataset import Split
from mixq.errors import InputError
from mixq.runtimes import Executable
from mixq.runtimes.openvino import Compiled, latency_properties
from mixq.task import Array, Inputs, Outputs

Metric = Callable[[Outputs, Array], float]
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


def opened(model: Any, threads: int) -> Executable:
    """NNCF's openvino.Model in mixq's own executable, with the properties of mixq's runtime (f32 for the rest)."""
    return Compiled(openvino.Core(), model, latency_properties(threads), b"")


def quantize_within(
    nncf: Any, model: bytes, calibration: Sequence[Inputs], split: Split, metric: Metric, max_drop: float
) -> Any:
    """The openvino.Model of NNCF's accuracy control, which gives layers back to FP32 until the drop is `max_drop`.

    metric: of outputs and targets, higher is better. It is validated on the batches of `split`, as its users do.
    """
    rows = list(single_rows(calibration))
    starts = np.cumsum([0, *(len(next(iter(batch.values()))) for batch in split.batches)])
    numbered = list(enumerate(split.batches))

    def validate(compiled: Any, items: Iterable[tuple[int, Inputs]]) -> tuple[float, None]:
        names = [output.get_any_name() for output in compiled.outputs]
        found, places = [], []
        for number, batch in items:
            values = compiled(dict(batch))
            found.append({name: values[compiled.output(i)].copy() for i, name in enumerate(names)})
            places.append(np.arange(starts[number], starts[number + 1]))
        return metric(concatenated(found), split.targets[np.concatenate(places)]), None

    with redirect_stdout(StringIO()):
        return nncf.quantize_with_accuracy_control(
            openvino.Core().read_model(model),
            nncf.Dataset(rows),
            nncf.Dataset(numbered, lambda item: item[1]),
            validate,
            max_drop=max_drop,
            subset_size=len(rows),
        )
