"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import re

os.environ.setdefault("OPENVINO_TELEMETRY", "0")

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import onnx
import openvino

from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.graph.placement import VALUE_PRESERVING, Placement
from mixq.runtimes.base import Audit, Executable, Kernel, Runtime
from mixq.task import Inputs, Outputs

HINT = "INFERENCE_PRECISION_HINT"
# How many values of an input share a scale that is found at run time; 0: none is. Layers whose weights are stored as
# codes are quantized so where their inputs are whole groups, or else stay float without a word (2026.4). Unless it is
# told, OpenVINO takes 32 wherever it can, and weight-only is not what it says.
GROUP, GROUP_SIZE = "DYNAMIC_QUANTIZATION_GROUP_SIZE", 128
DYNAMIC_OPS = ("Gemm", "MatMul")
PROFILE_SECONDS, FEWEST_PROFILED, MOST_PROFILED = 0.3, 5, 50  # counters are means of all runs; the first allocates
SHAPES_KEPT = 4  # compiled models kept per executable, one a set of input shapes
EXECUTED = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
# Subgraph is a fusion of elementwise ops, which holds a layer only in attention.
KERNELS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
COMPUTING = (*KERNELS, "Subgraph")
LOOK_UPS = ("Gather",)
MOST_FUSED = 4  # ops behind a layer by whose names its kernel may be known: scale, mask and softmax of attention


class OpenVino(Runtime):
    """Its INT8 kernels are picked from the pairs on a layer's inputs; codes travel on through pools and Concat."""

    name: ClassVar[str] = "openvino"
    placement: ClassVar[Placement] = Placement(
        transparent=VALUE_PRESERVING | {"Pad"},
        integer=frozenset({"Add", "GlobalAveragePool"}),
        weight_only="stored",
        dynamic="stored",
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
        if activation is not Activation.DYNAMIC:
            return None
        if layer.op not in DYNAMIC_OPS:
            return f"OpenVINO quantizes at run time what constant matrices multiply, not the input of a {layer.op}"
        if layer.weight_shape[1 - layer.channel_axis] % GROUP_SIZE:
            return f"OpenVINO quantizes inputs at run time by {GROUP_SIZE} values, and only where none is left over"
        return None

    def expected(self, scheme: LayerScheme, layer: Layer, config: MixedPrecisionConfig) -> str:
        if scheme.activation is Activation.WEIGHT_ONLY and not layer.looks_up:
            return "fp32" if self.typed(config) else "bf16"
        if scheme.precision is Precision.FP16 and "FP16" not in self._capabilities:
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
            read = self._core.read_model(model)
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot read the model: {_first_line(error)}") from error
        return Compiled(self._core, read, {**latency_properties(threads), **(options or {})}, model)


def latency_properties(threads: int) -> dict[str, Any]:
    """One stream of float32 unless an option says otherwise."""
    return {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", HINT: "f32"}


class Compiled(Executable):
    """An openvino.Model, compiled lazily for each set of input shapes: static shapes are what the fast kernels need.

    onnx_bytes: what the model was read from; `audit` finds the layers' outputs in it.
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
        nodes = [{**_info(node), "reads": _read(node)} for node in executed]
        names = _names_behind(self._onnx, layers)
        kernels = tuple(_kernel(layer, names[layer.name], nodes, self._group) for layer in layers)
        return Audit(kernels, sum(_converts(node) for node in executed))

    @property
    def _group(self) -> int:
        """How many values share a scale that is found at run time; 0 for none."""
        return int(self._properties.get(GROUP, 0))

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


def _names_behind(onnx_bytes: bytes, layers: Sequence[Layer]) -> dict[str, list[set[str]]]:
    """By layer: the names of its output, then those of each op behind it that a kernel may take in, up to a layer."""
    nodes = onnx.load_model_from_string(onnx_bytes).graph.node
    by_name, known = {node.name: node for node in nodes}, {layer.name for layer in layers}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    found = {}
    for layer in layers:
        names, node = [{layer.output}], by_name.get(layer.name)
        while node is not None:
            names.append({node.name, *node.output})
            following = readers.get(node.output[0], [])
            ends = len(following) != 1 or following[0].name in known or len(names) > MOST_FUSED
            node = None if ends else following[0]
        found[layer.name] = [names[0] | names[1], *names[2:]] if len(names) > 1 else names
    return found


def _kernel(layer: Layer, behind: Sequence[set[str]], nodes: Sequence[Mapping[str, str]], group: int) -> Kernel:
    """The computing node that took `layer` in; its fused node lists the names of all that went into it, or of some."""
    # Some transformations keep the output's name only; of a node and a tensor of one name, one gets a number (2026.4).
    name, types = layer.name, LOOK_UPS if layer.looks_up else COMPUTING
    exact = {name, *behind[0]}
    exact |= {f"{part}{end}" for part in (name, f"{name}/WithoutBiases") for end in ("", "/DequantizationMultiply")}
    numbered = re.compile(rf"{re.escape(name)}_\d+(/WithoutBiases)?")
    found = [
        node
        for node in nodes
        if node["layerType"] in types and any(one in exact or numbered.fullmatch(one) for one in _names(node))
    ]
    found.sort(key=lambda node: (types.index(node["layerType"]), not exact & _names(node)))
    computing = (node for names in behind[1:] for node in nodes if node["layerType"] in types and names & _names(node))
    node = found[0] if found else next(computing, None)
    if node is None:
        return Kernel(name, "unknown", "not in the executed graph")
    time = node["execTimeMcs"]
    return Kernel(
        name,
        _executed(node, layer, group),
        f"{node['layerType']}:{node['primitiveType']}",
        float(time) if time.replace(".", "").isdigit() else None,
    )


def _executed(node: Mapping[str, str], layer: Layer, group: int) -> str:
    """The precision of the arithmetic.

    Of float data times codes, OpenVINO names the codes' type, whether it quantizes the data too or not (2026.4). It
    does so where the data consists of whole groups; a test compares with the numbers. If not, the primitive's name ends
    in the type that it computes in.
    """
    data, *others = node["reads"].split(",")
    mixed = layer.multiplies and EXECUTED.get(data) != "int8" and "int8" in {EXECUTED.get(one) for one in others[:1]}
    if not mixed:
        return EXECUTED.get(node["runtimePrecision"], node["runtimePrecision"])
    if group and not layer.weight_shape[1 - layer.channel_axis] % group:
        return "int8"
    arithmetic = node["primitiveType"].rpartition("_")[2]
    return EXECUTED.get(arithmetic, arithmetic)


def _read(node: Any) -> str:
    """The types of what the node reads, as OpenVINO calls them."""
    sources = [port.get_source_output() for port in node.inputs()]
    types = [(_info(source.get_node())["outputPrecisions"].split(","), source.get_index()) for source in sources]
    return ",".join(found[min(index, len(found) - 1)] for found, index in types)


def _names(node: Mapping[str, str]) -> set[str]:
    return {node["name"], *node["originalLayersNames"].split(",")}


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[0].strip() if lines else type(error).__name__
