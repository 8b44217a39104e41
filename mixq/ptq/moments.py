"""Moments: how the inputs of a layer vary together, in FP32 and as the INT8 network gives them.

They are all that the squared error at a layer's output depends on, E‖Wx + b − Ŵx̂ − b̂‖², so that rounding and biases
are optimized without keeping a single activation: memory does not grow with the number of batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from mixq.graph.model import Graph, Layer
from mixq.ptq.matrix import LayerMatrix
from mixq.ptq.networks import int8_inputs
from mixq.ptq.state import Material, Prepared
from mixq.task import Array

SAMPLES = 2**15  # output positions of a layer that are looked at, over all batches
POSITIONS = 2**13  # of the mean input of a layer
MOST_COLUMNS = 4608  # 3 × 3 × 512: of inputs whose products are kept together; their number grows with the square
MOST_BYTES = 2**28  # of the activations of one batch that are held at a time


@dataclass
class Moments:
    """Of x (FP32) and x̂ (INT8), by group of the layer: sums over `count` samples of x̂ x̂ᵀ, x x̂ᵀ, x̂ and x."""

    count: int = 0
    qq: Array = field(default_factory=lambda: np.zeros(()))
    xq: Array = field(default_factory=lambda: np.zeros(()))
    q: Array = field(default_factory=lambda: np.zeros(()))
    x: Array = field(default_factory=lambda: np.zeros(()))

    def update(self, x: Array, q: Array) -> None:
        """Add samples of shape (samples, groups, columns)."""
        left, right = x.transpose(1, 2, 0), q.transpose(1, 0, 2)
        self.count += len(x)
        self.xq = self.xq + np.matmul(left, right)
        self.qq = self.qq + np.matmul(q.transpose(1, 2, 0), right)
        self.q = self.q + q.sum(0, dtype=np.float64)
        self.x = self.x + x.sum(0, dtype=np.float64)

    def central(self) -> Moments:
        """The same about the means: of the errors of a layer whose bias takes care of their mean."""
        mean = self.q[..., None, :] / self.count
        return replace(self, qq=self.qq - self.q[..., None] * mean, xq=self.xq - self.x[..., None] * mean)


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


def collect_moments(inputs: Iterable[tuple[Array, Array]], matrix: LayerMatrix, material: Material) -> Moments:
    """The moments of one layer, from its input in FP32 and INT8 batch by batch; in parts where it has many columns."""
    found, most = Moments(), max(1, SAMPLES // len(material.batches))
    for number, (x, q) in enumerate(inputs):
        draw = partial(np.random.default_rng, [material.seed, number])  # the same positions of both
        found.update(in_parts(matrix.columns(x, most, draw())), in_parts(matrix.columns(q, most, draw())))
    return found


def in_parts(values: Array) -> Array:
    """(…, groups, columns) as (…, groups × parts, MOST_COLUMNS at most), the last part filled up with zeros."""
    *leading, groups, columns = values.shape
    parts = -(-columns // MOST_COLUMNS)
    if parts == 1:
        return values
    size = -(-columns // parts)
    padded = np.pad(values, [(0, 0)] * (len(leading) + 1) + [(0, parts * size - columns)])
    return padded.reshape(*leading, groups * parts, size)


def joined(values: Array, columns: int) -> Array:
    """The inverse of `in_parts`."""
    *leading, parts, _ = values.shape
    groups = parts // -(-columns // MOST_COLUMNS)
    return values.reshape(*leading, groups, -1)[..., :columns]


def mean_columns(prepared: Prepared, material: Material, layers: Sequence[Layer]) -> dict[str, Array]:
    """E x̂ of `layers`, each (groups, columns), over all rows; of large inputs at POSITIONS positions."""
    matrices = matrices_of(prepared.graph, layers)
    sums: dict[str, dict[tuple[int, ...], Array]] = {name: {} for name in matrices}  # of rows of each shape
    sizes = dict.fromkeys(matrices, 0)
    quantized = int8_inputs(prepared, material, layers)
    for batch in material.batches:
        values = quantized(batch)
        for name, matrix in matrices.items():
            row = matrix.summed(values[name])
            sums[name][row.shape] = sums[name].get(row.shape, np.float32(0)) + row
            sizes[name] += values[name].size
    means = {}
    for name, matrix in matrices.items():
        draw = partial(np.random.default_rng, material.seed)
        columns = [row.size * matrix.columns(row, POSITIONS, draw()).mean(0, np.float64) for row in sums[name].values()]
        means[name] = np.asarray(sum(columns) / sizes[name])
    return means


def matrices_of(graph: Graph, layers: Iterable[Layer]) -> dict[str, LayerMatrix]:
    """By layer name."""
    return {layer.name: LayerMatrix(layer, graph.nodes[layer.name]) for layer in layers}


def _held_bytes(layer: Layer, rows: int) -> int:
    """Of the layer's inputs in a batch, FP32 and INT8."""
    return 8 * rows * math.prod(layer.input_shape)
