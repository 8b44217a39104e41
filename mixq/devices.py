"""What each precision really runs as on this CPU, and how fast: measured on one convolution that is all arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mixq import affine, machine
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, uniform
from mixq.graph.layers import find_layers
from mixq.graph.lower import lower
from mixq.graph.model import Graph, serialize
from mixq.graph.normalize import IR_VERSION, OPSET
from mixq.graph.plan import make_plan
from mixq.graph.quantize import Parameters
from mixq.latency import measure_pair
from mixq.runtimes import NAMES, Executable, Runtime, get_runtime

CHANNELS, SIDE = 128, 28


@dataclass(frozen=True)
class Device:
    """One precision on one runtime: what it executed as, by which kernel, and its speed against FP32 there.

    speedup is None where it cannot run; note says why, or that it runs as something else.
    """

    runtime: str
    precision: str
    executed: str
    kernel: str
    speedup: float | None
    gflops: float | None
    note: str


def measure_devices(threads: int = 1) -> list[Device]:
    """Every precision on every runtime of this installation, on `threads` threads."""
    machine.check_threads(threads)
    return [found for name in NAMES for found in _measure(get_runtime(name), threads)]


def _measure(runtime: Runtime, threads: int) -> Iterator[Device]:
    graph = _convolutions()
    inputs = {"x": np.random.default_rng(0).standard_normal((1, CHANNELS, SIDE, SIDE), dtype=np.float32)}
    reference = _compiled(runtime, graph, Precision.FP32, threads)
    for precision in Precision:
        refusal = runtime.refusal(LayerScheme(precision=precision), graph.layers[0])
        if refusal is not None:
            yield Device(runtime.name, precision.value, "-", "-", None, None, refusal)
            continue
        executable = _compiled(runtime, graph, precision, threads)
        latency = measure_pair(reference.bind(inputs), executable.bind(inputs))
        kernel = executable.audit(graph.layers, inputs).kernels[1]
        flops = 2 * sum(layer.macs for layer in graph.layers)
        note = "" if kernel.executed == precision.value else f"runs as {kernel.executed}: no speed, only size"
        if kernel.executed == "int8" and runtime.placement.sums_saturate:
            note = "adds in 16 bits: scales of weights leave room for that"
        yield Device(
            runtime.name,
            precision.value,
            kernel.executed,
            kernel.kernel,
            latency.speedup.median,
            flops / latency.candidate.median / 1e6,
            note,
        )


def _compiled(runtime: Runtime, graph: Graph, precision: Precision, threads: int) -> Executable:
    config = _config(graph, precision)
    int8 = config.layers_with(Precision.INT8)
    plan = make_plan(graph, int8, runtime.placement)
    values = {name: graph.weight(graph.by_name[name].weight) for name in int8}
    weights = {name: affine.symmetric(np.abs(value).max((1, 2, 3)), axis=0) for name, value in values.items()}
    # Behind ReLU nothing is negative, and ONNX Runtime fuses it only where the codes say so.
    ranges = {name: affine.asymmetric(-4 if name == "x" else 0, 4) for name in plan.tensors}
    parameters = Parameters(ranges, weights)
    model = lower(graph, config, plan, parameters, typed=runtime.typed(config))
    return runtime.compile(serialize(model), threads, runtime.options(config))


def _config(graph: Graph, precision: Precision) -> MixedPrecisionConfig:
    return uniform("devices", graph.layer_names, LayerScheme(precision=precision))


def _convolutions() -> Graph:
    """Four 3 × 3 convolutions with ReLU in a row."""
    rng = np.random.default_rng(0)
    value = ir.val("x", ir.DataType.FLOAT, ("batch", CHANNELS, SIDE, SIDE))
    graph = ir.Graph([value], [], nodes=[], name="devices", opset_imports={"": OPSET})
    for index in range(4):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3, 3), dtype=np.float32) / math.sqrt(9 * CHANNELS)
        stored = ir.Value(name=f"w{index}", const_value=ir.tensor(weight, name=f"w{index}"))
        stored.shape, stored.type = ir.Shape(weight.shape), ir.TensorType(ir.DataType.FLOAT)
        graph.register_initializer(stored)
        conv = ir.node("Conv", [value, stored], {"pads": [1, 1, 1, 1]}, name=f"conv{index}")
        relu = ir.node("Relu", [conv.outputs[0]], name=f"relu{index}")
        for node in (conv, relu):
            graph.append(node)
            node.outputs[0].name = f"{node.name}_out"
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape(("batch", CHANNELS, SIDE, SIDE))
        value = relu.outputs[0]
    graph.outputs.append(value)
    model = ir.Model(graph, ir_version=IR_VERSION)
    return Graph(model, find_layers(model, {"x": np.zeros((1, CHANNELS, SIDE, SIDE), np.float32)}))
