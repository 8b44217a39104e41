"""What no property of a runtime tells of its integer kernels on this CPU: tried, on layers of one op."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.config import Activation, LayerScheme, Precision, uniform
from mixq.graph.edit import add_initializer
from mixq.graph.layers import find_layers
from mixq.graph.lower import lower
from mixq.graph.model import Graph, serialize
from mixq.graph.normalize import IR_VERSION, OPSET
from mixq.graph.plan import make_plan
from mixq.graph.quantize import Parameters
from mixq.task import Array

if TYPE_CHECKING:
    from mixq.runtimes.base import Runtime

SIZE = 128  # inputs of an output value: the most that share a scale found at run time


@cache
def sums_saturate(runtime: type[Runtime]) -> bool:
    """Whether a convolution or a matrix product of ones, whose codes are the largest there are, comes out too small.

    Without instructions that multiply bytes and add in 32 bits (AVX512-VNNI, AVX-VNNI, AMX), kernels add the products
    of two neighbours in 16 bits first, and what does not fit is cut off without a word (oneDNN, "Nuances of int8
    computations").
    """
    rows = np.ones((SIZE, SIZE), np.float32)
    return any(
        _run(runtime(), op, x, Activation.STATIC).min() < 0.9 * SIZE
        for op, x in {"MatMul": rows, "Conv": rows.reshape(4, SIZE, 8, -1)}.items()
    )


@cache
def scales_at_run_time(runtime: type[Runtime]) -> bool:
    """Whether a dynamic layer rounds its input: what is a thousandth of the largest value is lost then."""
    x = np.full((1, SIZE), 1e-3, np.float32)
    x[0, 0] = 1
    return bool(_run(runtime(), "MatMul", x, Activation.DYNAMIC).max() < 1 + 0.5e-3 * SIZE)


def _run(runtime: Runtime, op: str, x: Array, activation: Activation) -> Array:
    """The output of an INT8 layer whose weights are ones, and whose outputs are sums of SIZE inputs up to 1."""
    graph = _one_layer(op, x)
    (layer,) = graph.layers
    config = uniform("probe", [layer.name], LayerScheme(precision=Precision.INT8, activation=activation))
    plan = make_plan(graph, config.static_layers, runtime.layout)
    ranges = {name: affine.asymmetric(0, 1 if name == "x" else SIZE) for name in plan.tensors}
    weights = {layer.name: affine.symmetric(np.ones(SIZE), layer.channel_axis)}
    model = lower(graph, config, plan, Parameters(ranges, weights), typed=runtime.typed(config))
    (y,) = runtime.compile(serialize(model), 1, runtime.options(config)).run({"x": x}).values()
    return y


def _one_layer(op: str, x: Array) -> Graph:
    weight = np.ones((SIZE, SIZE, *[1] * (x.ndim - 2)), np.float32)
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("batch", *x.shape[1:]))
    value = ir.Value(name="x", type=kind, shape=shape)
    graph = ir.Graph([value], [], nodes=[], name="probe", opset_imports={"": OPSET})
    node = ir.node(op, [value, add_initializer(graph, "w", weight)], name="layer")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", kind, shape
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    model = ir.Model(graph, ir_version=IR_VERSION)
    return Graph(model, find_layers(model, {"x": x[:1]}))
