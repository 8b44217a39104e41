"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import re

os.environ.setdefault("OPENVINO_TELEMETRY", "0")

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import onnx
import openvino

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.graph import large
from mixq.graph.model import Layer
from mixq.graph.placement import VALUE_PRESERVING, Placement
from mixq.runtimes.base import Audit, Executable, Kernel, Runtime
from mixq.task import Inputs, Outputs

HINT = "INFERENCE_PRECISION_HINT"
PROFILE_SECONDS, FEWEST_PROFILED, MOST_PROFILED = 0.3, 5, 50  # counters are means of all runs; the first allocates
SHAPES_KEPT = 4  # compiled models kept per executable, one a set of input shapes
EXECUTED = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
MOST_STRIDE = 3  # along the last axis, of an integer transposed convolution
# Subgraph is a fusion of elementwise ops, which holds a layer only in attention.
KERNELS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
COMPUTING = (*KERNELS, "Subgraph")


class OpenVino(Runtime):
    """Its INT8 kernels are picked from the pairs on a layer's inputs; codes travel on through pools and Concat."""

    name: ClassVar[str] = "openvino"
    placement: ClassVar[Placement] = Placement(
        transparent=VALUE_PRESERVING | {"Pad"},
        integer=frozenset({"Add", "GlobalAveragePool"}),
        no_zero_point=frozenset({"ConvTranspose"}),
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

    def refusal(self, scheme: LayerScheme, layer: Layer | None) -> str | None:
        if scheme.activation is not Activation.STATIC:
            return f"{scheme.activation} INT8 activations are not lowered for OpenVINO yet"
        if scheme.precision is Precision.BF16 and "BF16" not in self._capabilities:
            return "this CPU has no BF16 instructions"
        if scheme.precision is Precision.INT8 and layer is not None and layer.op == "ConvTranspose":
            return _float_transposed(layer)
        return None

    def expected(self, precision: Precision) -> str:
        if precision is Precision.FP16 and "FP16" not in self._capabilities:
            return "fp32"
        return precision.value

    def options(self, config: MixedPrecisionConfig) -> Mapping[str, str]:
        return {HINT: "f32" if self.typed(config) else "bf16"}

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
        with TemporaryDirectory(prefix="mixq-") as folder:  # what is mapped from its files outlives them
            return self._core.read_model(large.write(model, Path(folder)))


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
        nodes = [_info(node) for node in executed]
        written = _written(onnx.load_model_from_string(self._onnx).graph)
        kernels = tuple(_kernel(layer.name, {layer.output, *written.get(layer.name, ())}, nodes) for layer in layers)
        return Audit(kernels, sum(_converts(node) for node in executed))

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


def _written(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """By node, the names under which its result may go: its output's, and those of the bias that alone is added to it.

    A linear layer on sequences is a MatMul and an Add, of another type perhaps; the kernel that takes both in is named
    for the Add (2026.4).
    """
    constant = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for node in graph.node:
        behind = readers.get(node.output[0], [])
        if len(behind) == 1 and behind[0].op_type == "Cast":
            behind = readers.get(behind[0].output[0], [])
        biased = len(behind) == 1 and behind[0].op_type == "Add" and bool(constant & set(behind[0].input))
        found[node.name] = {node.output[0], *((behind[0].name, behind[0].output[0]) if biased else ())}
    return found


def _info(node: Any) -> dict[str, str]:
    info = node.get_rt_info()
    values = {key: str(getattr(info[key], "value", info[key])) for key in info}
    return {**values, "name": str(node.get_friendly_name())}


def _converts(node: Any) -> bool:
    """Whether the node's data is of one kind, what it writes of the other; constants do not count."""
    sources = [_info(port.get_source_output().get_node()) for port in node.inputs()]
    read = {_is_code(source) for source in sources if source["layerType"] != "Const"}
    info = _info(node)
    return info["layerType"] not in KERNELS and (not _is_code(info)) in read


def _is_code(info: Mapping[str, str]) -> bool:
    return EXECUTED.get(info["outputPrecisions"].partition(",")[0]) == "int8"


def _kernel(layer: str, outputs: Collection[str], nodes: Sequence[Mapping[str, str]]) -> Kernel:
    """The computing node that took `layer` in; its fused node lists the names of all that went into it."""
    # Some transformations keep the output's name only; of a node and a tensor of one name, one gets a number (2026.4).
    exact = {layer, *outputs}
    exact |= {f"{name}{part}" for name in (layer, f"{layer}/WithoutBiases") for part in ("", "/DequantizationMultiply")}
    numbered = re.compile(rf"{re.escape(layer)}_\d+(/WithoutBiases)?")
    found = [
        node
        for node in nodes
        if node["layerType"] in COMPUTING and any(name in exact or numbered.fullmatch(name) for name in _names(node))
    ]
    found.sort(key=lambda node: (COMPUTING.index(node["layerType"]), not exact & _names(node)))
    if not found:
        return Kernel(layer, "unknown", "not in the executed graph")
    node = found[0]
    time = node["execTimeMcs"]
    # What is noted as the runtime precision may be that of the data before a conversion (Deconvolution, 2026.4); the
    # kernel's own name ends in what it takes.
    taken = node["primitiveType"].rpartition("_")[2].lower()
    precision = taken if node["layerType"] in KERNELS and taken in EXECUTED else node["runtimePrecision"]
    return Kernel(
        layer,
        EXECUTED.get(precision, precision),
        f"{node['layerType']}:{node['primitiveType']}",
        float(time) if time.replace(".", "").isdigit() else None,
    )


def _names(node: Mapping[str, str]) -> set[str]:
    return {node["name"], *node["originalLayersNames"].split(",")}


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0].strip() if lines else type(error).__name__
