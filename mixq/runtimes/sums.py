"""Whether a runtime's integer kernels add in 16 bits on this CPU: tried, with the largest codes that there are.

Without instructions that multiply bytes and add in 32 bits (AVX512-VNNI, AVX-VNNI, AMX), kernels add the products of
two neighbours in 16 bits first, and what does not fit is cut off without a word (oneDNN, "Nuances of int8
computations").
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.config import LayerScheme, Precision, uniform
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

SIZE = 64
PROBES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {  # shapes of input and weight, axis of channels
    "Conv": ((1, SIZE, 8, 8), (SIZE, SIZE, 1, 1), 0),
    "MatMul": ((SIZE, SIZE), (SIZE, SIZE), 1),
}


@cache
def sums_saturate(runtime: type[Runtime]) -> bool:
    """Whether a convolution or a matrix product of ones comes out smaller than it is."""
    return any(_probed(runtime(), op, *probe) < 0.9 * SIZE for op, probe in PROBES.items())


def _probed(runtime: Runtime, op: str, shape: tuple[int, ...], weight_shape: tuple[int, ...], axis: int) -> float:
    """The least output of a layer, each the sum of SIZE products 1 · 1, whose codes are 255 · 127."""
    x, weight = np.ones(shape, np.float32), np.ones(weight_shape, np.float32)
    graph = _one_layer(op, x, weight)
    config = uniform("probe", graph.layer_names, LayerScheme(precision=Precision.INT8))
    plan = make_plan(graph, graph.layer_names, runtime.layout)
    ranges = {name: affine.asymmetric(0, 1 if name == "x" else SIZE) for name in plan.tensors}
    weights = {graph.layer_names[0]: affine.symmetric(np.ones(SIZE), axis)}
    model = lower(graph, config, plan, Parameters(ranges, weights), typed=runtime.typed(config))
    (y,) = runtime.compile(serialize(model), 1, runtime.options(config)).run({"x": x}).values()
    return float(y.min())


def _one_layer(op: str, x: Array, weight: Array) -> Graph:
    kind = ir.TensorType(ir.DataType.FLOAT)
    value = ir.Value(name="x", type=kind, shape=ir.Shape(("batch", *x.shape[1:])))
    graph = ir.Graph([value], [], nodes=[], name="probe", opset_imports={"": OPSET})
    graph.append(ir.node(op, [value, add_initializer(graph, "w", weight)], name="layer"))
    y = graph[-1].outputs[0]
    y.name, y.type, y.shape = "y", kind, value.shape
    graph.outputs.append(y)
    model = ir.Model(graph, ir_version=IR_VERSION)
    return Graph(model, find_layers(model, {"x": x}))
