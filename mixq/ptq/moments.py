"""Moments: how the inputs of a layer vary together, in FP32 and as the INT8 network gives them.

They are all that the squared error at a layer's output depends on, E‖Wx + b − Ŵx̂ − b̂‖², so that rounding and biases
are optimized without keeping a single activation: memory does not grow with the number of batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from mixq.config import LayerScheme, Precision, uniform
from mixq.graph.cut import tail
from mixq.graph.edit import nodes_by_name
from mixq.graph.lower import lower
from mixq.graph.model import Graph, Layer, Run, serialize
from mixq.graph.plan import make_plan
from mixq.ptq.matrix import LayerMatrix
from mixq.ptq.parameters import parameters
from mixq.ptq.state import Material, Prepared
from mixq.task import Array, Inputs, Outputs

SAMPLES = 2**15  # output positions of a layer that are looked at, over all batches
MOST_BYTES = 2**28  # of the activations of one batch, or of the moments, that are held at a time

INT8 = LayerScheme(precision=Precision.INT8)


@dataclass
class Moments:
    """Of x (FP32) and x̂ (INT8), by group of the layer: sums over `count` samples of x, x̂ , x̂ x̂ᵀ and x x̂ᵀ."""

    count: int = 0
    x: Array = field(default_factory=lambda: np.zeros(()))
    q: Array = field(default_factory=lambda: np.zeros(()))
    qq: Array = field(default_factory=lambda: np.zeros(()))
    xq: Array = field(default_factory=lambda: np.zeros(()))

    def update(self, x: Array, q: Array) -> None:
        """Add samples of shape (samples, groups, columns)."""
        left, right = x.transpose(1, 2, 0), q.transpose(1, 0, 2)
        self.count += len(x)
        self.x = self.x + x.sum(0, dtype=np.float64)
        self.q = self.q + q.sum(0, dtype=np.float64)
        self.xq = self.xq + np.matmul(left, right)
        self.qq = self.qq + np.matmul(q.transpose(1, 2, 0), right)


def in_turn(layers: Sequence[Layer], material: Material, most: int) -> Iterator[list[Layer]]:
    """`layers` in order, at most `most` at a time and as many as memory allows."""
    rows = max(len(next(iter(batch.values()))) for batch in material.batches)
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = _held_bytes(layer, rows)
        if part and (len(part) >= most or held + size > MOST_BYTES):
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def collect_moments(prepared: Prepared, material: Material, layers: Sequence[Layer]) -> dict[str, Moments]:
    """The moments of `layers` over the calibration batches; x̂ is what the network with every layer in INT8 gives."""
    matrices = matrices_of(prepared.graph, layers)
    found = {name: Moments() for name in matrices}
    exact, quantized = float_inputs(prepared.graph, material, layers), _int8_run(prepared, material, layers)
    most = max(1, SAMPLES // len(material.batches))
    for number, batch in enumerate(material.batches):
        x, q = exact(batch), quantized(batch)
        for name, matrix in matrices.items():
            draw = partial(np.random.default_rng, [material.seed, number])  # the same positions of both
            found[name].update(matrix.columns(x[name], most, draw()), matrix.columns(q[name], most, draw()))
    return found


def matrices_of(graph: Graph, layers: Iterable[Layer]) -> dict[str, LayerMatrix]:
    """By layer name."""
    nodes = nodes_by_name(graph.model.graph)
    return {layer.name: LayerMatrix(layer, nodes[layer.name]) for layer in layers}


def float_inputs(graph: Graph, material: Material, layers: Sequence[Layer]) -> Run:
    """By layer name, its input."""
    return _inputs_of(graph.model, material, layers)


def _int8_run(prepared: Prepared, material: Material, layers: Sequence[Layer]) -> Run:
    """By layer name, its input where every layer runs in INT8."""
    graph = prepared.graph
    plan = make_plan(graph, graph.layer_names, material.placement)
    config = uniform(graph.fingerprint, graph.layer_names, INT8)
    model = lower(graph, config, plan, parameters(prepared, plan, graph.layer_names))
    return _inputs_of(model, material, layers)


def _inputs_of(model: ir.Model, material: Material, layers: Sequence[Layer]) -> Run:
    """Runs what is before `layers`, as far as it has to be."""
    nodes = nodes_by_name(model.graph)
    names = {layer.name: str(value.name) for layer in layers if (value := nodes[layer.name].inputs[0])}
    given = {str(value.name) for value in model.graph.inputs}
    wanted = [name for name in dict.fromkeys(names.values()) if name not in given]
    run = material.compile_run(serialize(tail(model, sorted(given), wanted))) if wanted else lambda _: {}

    def inputs_of(batch: Inputs) -> Outputs:
        values = {**batch, **run(batch)}
        return {layer: values[name] for layer, name in names.items()}

    return inputs_of


def _held_bytes(layer: Layer, rows: int) -> int:
    """Of the layer's inputs in a batch, FP32 and INT8, and of its moments."""
    groups = layer.input_shape[1] // layer.weight_shape[1] if layer.op == "Conv" else 1
    columns = math.prod(layer.weight_shape[1:]) if layer.op != "MatMul" else layer.weight_shape[0]
    return 8 * rows * math.prod(layer.input_shape) + 8 * groups * columns**2
