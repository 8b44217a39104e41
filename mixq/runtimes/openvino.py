"""OpenVINO on the CPU."""

from __future__ import annotations

import os

os.environ.setdefault("OPENVINO_TELEMETRY", "0")

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import openvino

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.graph import large
from mixq.graph.model import Layer
from mixq.graph.placement import VALUE_PRESERVING, Forms, Placement
from mixq.runtimes.base import Audit, Executable, Runtime
from mixq.runtimes.openvino_audit import read_audit
from mixq.runtimes.probes import scales_at_run_time
from mixq.scratch import scratch_folder
from mixq.task import Inputs, Outputs

HINT = "INFERENCE_PRECISION_HINT"
# How many values of an input share a scale that is found at run time; 0: none is. Layers whose weights are stored as
# codes are quantized so where they have that many inputs, or else stay float without a word (2026.4). Unless it is
# told, OpenVINO takes 32 wherever it can, and weight-only is not what it says.
GROUP, GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE", 128
DYNAMIC_OPS = ("Gemm", "MatMul")
PROFILE_SECONDS, FEWEST_PROFILED, MOST_PROFILED = 0.3, 5, 50  # counters are means of all runs; the first allocates
SHAPES_KEPT = 4  # compiled models kept per executable, one a set of input shapes
MOST_STRIDE = 3  # along the last axis, of an integer transposed convolution


class OpenVino(Runtime):
    """Its INT8 kernels are picked from the pairs on a layer's inputs; codes travel on through pools and Concat."""

    name: ClassVar[str] = "openvino"
    layout: ClassVar[Placement] = Placement(
        transparent=VALUE_PRESERVING | {"Pad"},
        integer=frozenset({"Add", "GlobalAveragePool"}),
        no_zero_point=frozenset({"ConvTranspose"}),
        products_transpose=True,
        products_swap=True,
        scales_fuse=True,
        forms=Forms(weight_only="stored", dynamic="stored"),
    )

    @cached_property
    def _core(self) -> Any:
        return openvino.Core()

    @cached_property
    def _capabilities(self) -> list[str]:
        return list(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))

    @property
    def version(self) -> str:
        return str(openvino.get_version())

    def float_refusal(self, precision: Precision) -> str | None:
        if precision is Precision.BF16 and "BF16" not in self._capabilities:
            return "this CPU has no BF16 instructions"
        return None

    def int8_refusal(self, activation: Activation, layer: Layer) -> str | None:
        if layer.weight is None:
            return "OpenVINO computes products of activations in float: it fuses attention as a whole"
        if activation is Activation.STATIC and layer.op == "ConvTranspose":
            return _float_transposed(layer)
        return _float_dynamic(layer) if activation is Activation.DYNAMIC else None

    def expected(self, scheme: LayerScheme, layer: Layer, config: MixedPrecisionConfig) -> str:
        if scheme.activation is Activation.WEIGHT_ONLY and not layer.looks_up:
            return "fp32" if self.typed(config) else "bf16"
        if scheme.precision is Precision.FP16:
            # Under the hint f32 FP16 is how weights are stored (2026.4), whatever the CPU. Under the hint f16 one with
            # AVX512-FP16 computes in FP16, in 1.5 times the time of FP32 (Tiny Darknet).
            return "fp32"
        return scheme.precision.value

    def options(self, config: MixedPrecisionConfig) -> Mapping[str, str]:
        options = {HINT: "f32" if self.typed(config) else "bf16"}
        dynamic = bool(config.int8_layers(Activation.DYNAMIC))
        return {**options, GROUP: str(GROUP_SIZE if dynamic else 0)}

    def typed(self, config: MixedPrecisionConfig) -> bool:
        # Under the hint everything that is not INT8 becomes BF16 with no cast at all: the cheapest mix. FP32 and FP16
        # layers exist only without it.
        floats = {scheme.precision for scheme in config.schemes.values()} - {Precision.INT8}
        return not (config.rest is Precision.BF16 and floats <= {Precision.BF16})

    def compile(self, model: bytes, threads: int, options: Mapping[str, str] | None = None) -> Executable:
        try:
            read = self._read(model)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot read the model: {_first_line(error)}") from error
        message, _ = large.split(model)
        return Compiled(self._core, read, {**latency_properties(threads), **(options or {})}, message)

    def _read(self, model: bytes) -> Any:
        if large.split(model)[1] is None:
            return self._core.read_model(model)
        with scratch_folder() as folder:  # what is mapped from its files outlives them
            return self._core.read_model(large.write(model, folder))


def _float_transposed(layer: Layer) -> str | None:
    """Why a transposed convolution has no integer kernel (2026.4); None where it has one."""
    if layer.groups > 1:
        return "OpenVINO has no integer kernel for a ConvTranspose with groups"
    if layer.strides[-1] > MOST_STRIDE or any(
        s > k for s, k in zip(layer.strides, layer.weight_shape[2:], strict=True)
    ):
        return (
            f"OpenVINO has no integer kernel for a ConvTranspose of a stride above {MOST_STRIDE} or its kernel's size"
        )
    return None


def _float_dynamic(layer: Layer) -> str | None:
    """Why the layer's input is not quantized at run time (2026.4); None where it is."""
    if layer.op not in DYNAMIC_OPS:
        return f"OpenVINO quantizes at run time what constant matrices multiply, not the input of a {layer.op}"
    if layer.weight_shape[1 - layer.channel_axis] < GROUP_SIZE:
        return f"OpenVINO quantizes inputs at run time by {GROUP_SIZE} values, and leaves shorter ones in float"
    if not scales_at_run_time(OpenVino):
        return "OpenVINO quantizes inputs at run time only on CPUs that multiply and add bytes at once (VNNI, AMX)"
    return None


def latency_properties(threads: int) -> dict[str, Any]:
    """One stream of float32 unless an option says otherwise."""
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", HINT: "f32"}


class Compiled(Executable):
    """An openvino.Model, compiled lazily for each set of input shapes: static shapes are what the fast kernels need.

    onnx_bytes: the ONNX message that the model was read from; `audit` finds the layers' outputs in it.
    """

    def __init__(self, core: Any, model: Any, properties: Mapping[str, Any], onnx_bytes: bytes) -> None:
        self._core, self._model, self._properties, self._onnx = core, model, properties, onnx_bytes
        self._names = [str(output.get_any_name()) for output in model.outputs]
        self._requests: dict[tuple[Any, ...], Any] = {}

    def run(self, inputs: Inputs) -> Outputs:
        return {name: value.copy() for name, value in self.view(inputs).items()}

    def view(self, inputs: Inputs) -> Outputs:
        request = self._request(inputs)
        request.infer({name: np.ascontiguousarray(value) for name, value in inputs.items()}, share_inputs=True)
        return {name: request.get_output_tensor(i).data for i, name in enumerate(self._names)}

    def bind(self, inputs: Inputs) -> Callable[[], None]:
        request = self._request(inputs)
        for name, value in inputs.items():
            request.get_tensor(name).data[:] = value
        infer = request.infer
        return lambda: infer(None) and None

    def audit(self, layers: Sequence[Layer], inputs: Inputs, *, timed: bool = True) -> Audit:
        # Counters slow the model down by some 3 %, so the model whose latency is measured has none.
        compiled = self._profiled(inputs) if timed else self._request(inputs).get_compiled_model()
        executed = compiled.get_runtime_model().get_ordered_ops()
        return read_audit(executed, layers, self._onnx, self._group, timed=timed)

    @property
    def _group(self) -> int:
        """How many values share a scale that is found at run time; 0 for none."""
        return int(self._properties.get(GROUP, 0)) if scales_at_run_time(OpenVino) else 0

    def _profiled(self, inputs: Inputs) -> Any:
        compiled = self._compile(inputs, {**self._properties, "PERF_COUNT": True})
        request = compiled.create_infer_request()
        start, runs = time.perf_counter(), 0
        while runs < FEWEST_PROFILED or (runs < MOST_PROFILED and time.perf_counter() < start + PROFILE_SECONDS):
            request.infer(dict(inputs))
            runs += 1
        return compiled

    def _request(self, inputs: Inputs) -> Any:
        key = tuple((name, value.shape) for name, value in sorted(inputs.items()))
        if key not in self._requests:
            while len(self._requests) >= SHAPES_KEPT:
                self._requests.pop(next(iter(self._requests)))
            self._requests[key] = self._compile(inputs, self._properties).create_infer_request()
        return self._requests[key]

    def _compile(self, inputs: Inputs, properties: Mapping[str, Any]) -> Any:
        try:
            model = self._model.clone()
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
            return self._core.compile_model(model, "CPU", dict(properties))
        except RuntimeError as error:
            shapes = {name: value.shape for name, value in inputs.items()}
            raise InputError(f"OpenVINO cannot compile the model for {shapes}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0].strip() if lines else type(error).__name__
