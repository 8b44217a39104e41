"""Scale groups: tensors whose channels may be scaled together without a change of what the network computes.

Between the ops that write such a tensor with weights of their own (a layer, a normalization, a multiplication) and
those that read it so, there is nothing but ops that a positive factor a channel passes through: ReLU, pooling, residual
additions. Where all of them are linear, a negative factor passes too. The writers' weights are divided by
the factors, the readers' multiplied (Nagel et al. 2019, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import content, is_own, nodes_by_name, set_content
from mixq.graph.model import Graph
from mixq.task import Array

PASSING = frozenset({"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Add", "Pad"})
ONE_SIDED = frozenset({"Relu", "LeakyRelu", "MaxPool"})  # of those, what a negative factor does not pass through
NORMALIZATIONS = {"BatchNormalization": 1, "LayerNormalization": -1}  # the channel axis of what they write
FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})
MATRIX_OPS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class ScaleGroup:
    """tensors: all those that are scaled alike, with `channels` along `axis`; writers, readers: names of nodes; turns:
    whether a factor may be negative."""

    tensors: tuple[str, ...]
    channels: int
    axis: int
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    turns: bool


def find_scale_groups(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[ScaleGroup]:
    """All groups, in the graph's order; `shapes` are those of one row."""
    search = _Search(graph, shapes)
    found: dict[str, None] = dict.fromkeys(search.leader(name) for name in search.values)
    groups = (search.group(leader) for leader in found)
    return [group for group in groups if group is not None]


class _Search:
    """Tensors joined by the ops that a factor passes through."""

    def __init__(self, graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes
        self._layers = graph.by_name
        self.values = {str(value.name): value for node in graph.model.graph for value in node.outputs}
        self._leaders = {name: name for name in self.values}
        for node in graph.model.graph:
            if self._passes(node):
                for value in _float_inputs(node):
                    if value.name in self._leaders:
                        self._leaders[self.leader(str(value.name))] = self.leader(str(node.outputs[0].name))

    def leader(self, name: str) -> str:
        while self._leaders[name] != name:
            name = self._leaders[name]
        return name

    def group(self, leader: str) -> ScaleGroup | None:
        """The group of the tensors joined with `leader`; None where something else reads or writes one of them."""
        tensors = [name for name in self.values if self.leader(name) == leader]
        writers: dict[str, None] = {}
        readers: dict[str, None] = {}
        axes: set[int | None] = set()
        for name in tensors:
            value = self.values[name]
            producer = value.producer()
            if value.is_graph_output() or producer is None:
                return None
            if not self._passes(producer):
                axes.add(self._written_axis(producer, value))
                writers[str(producer.name)] = None
            elif any(v.name not in self.values for v in _float_inputs(producer)):
                return None  # a graph input comes in
            for reader, index in value.uses():
                if not self._passes(reader):
                    axes.add(self._read_axis(reader, index, value))
                    readers[str(reader.name)] = None
        axis = axes.pop() if len(axes) == 1 else None
        shapes = [self._shapes.get(name, ()) for name in tensors]
        if axis is None or not readers or any(len(shape) <= axis for shape in shapes):
            return None
        counts = {shape[axis] for shape in shapes}
        turns = self._between(tensors).isdisjoint(ONE_SIDED)
        both = tuple(writers), tuple(readers)
        return ScaleGroup(tuple(tensors), counts.pop(), axis, *both, turns) if len(counts) == 1 else None

    def _between(self, tensors: Iterable[str]) -> set[str]:
        """The types of the ops that a factor of `tensors` passes through."""
        producers = [producer for name in tensors if (producer := self.values[name].producer()) is not None]
        return {node.op_type for node in producers if self._passes(node)}

    def _passes(self, node: ir.Node) -> bool:
        if node.op_type in FLATTENING:
            before, after = (
                self._shapes.get(str(v.name), ()) for v in (node.inputs[0], node.outputs[0]) if v is not None
            )
            return len(after) == 2 and len(before) > 2 and before[:2] == after and set(before[2:]) == {1}
        if node.op_type == "Pad":
            value = node.inputs[2] if len(node.inputs) > 2 else None
            return value is None or (value.const_value is not None and not value.const_value.numpy().any())
        if node.op_type == "Add":
            sizes = [self._shapes.get(str(value.name)) for value in node.inputs if value is not None]
            return sizes[0] == sizes[1] and not any(value is None or value.is_initializer() for value in node.inputs)
        return node.op_type in PASSING and len(node.outputs) == 1

    def _written_axis(self, node: ir.Node, value: ir.Value) -> int | None:
        shape = self._shapes.get(str(value.name), ())
        rank = len(shape)
        if node.op_type == "Mul":
            return _factor_axis(node, shape)
        if node.op_type in NORMALIZATIONS and _own(node, (1, 2)) and len(node.outputs) == 1:
            return _last_or(NORMALIZATIONS[node.op_type], rank) if _axis_is_last(node, rank) else None
        return self._layer_axis(node, rank)

    def _read_axis(self, node: ir.Node, index: int, value: ir.Value) -> int | None:
        shape = self._shapes.get(str(value.name), ())
        if index != 0:
            return None
        return _factor_axis(node, shape) if node.op_type == "Mul" else self._layer_axis(node, len(shape))

    def _layer_axis(self, node: ir.Node, rank: int) -> int | None:
        layer = self._layers.get(str(node.name))
        if layer is None or not _own(node, range(1, len(node.inputs))):
            return None
        if node.op_type in MATRIX_OPS:
            plain = len(layer.weight_shape) == 2 and (len(node.inputs) < 3 or layer.bias is not None)
            return rank - 1 if plain and not node.attributes.get_int("transA", 0) else None
        return 1 if node.op_type == "Conv" or node.attributes.get_int("group", 1) == 1 else None


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    count = 2 if node.op_type == "Add" else 1
    return [value for value in node.inputs[:count] if value is not None]


def _own(node: ir.Node, indices: Iterable[int]) -> bool:
    """Whether the constants at `indices` are read by this node alone."""
    values = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return all(value is None or is_own(value) for value in values)


def _factor_axis(node: ir.Node, shape: tuple[int, ...]) -> int | None:
    """Of a multiplication by a constant of its own: the one axis of a tensor of `shape` along which that has values."""
    if not _own(node, (1,)):
        return None
    sizes = content(_constants(node)[0]).shape
    wide = [axis - len(sizes) for axis, size in enumerate(sizes) if size > 1]
    axis = len(shape) + wide[0] if len(wide) == 1 else 0
    return axis if axis > 0 and shape[axis] == sizes[wide[0]] else None


def _last_or(axis: int, rank: int) -> int:
    return rank - 1 if axis < 0 else axis


def _axis_is_last(node: ir.Node, rank: int) -> bool:
    """Of a LayerNormalization, whether it normalizes the last axis alone."""
    if node.op_type != "LayerNormalization":
        return True
    return node.attributes.get_int("axis", -1) in (-1, rank - 1)


def scaled(graph: Graph, factors: Sequence[tuple[ScaleGroup, Array]]) -> Graph:
    """A graph that computes the same, in which the tensors of each group are divided by its factors (channels,)."""
    model = graph.model.clone()
    nodes = nodes_by_name(model.graph)
    for group, factor in factors:
        for name in group.writers:
            for value in _constants(nodes[name]):
                _multiply(value, _along_outputs(nodes[name], 1 / factor, content(value).ndim))
        for name in group.readers:
            weight = _constants(nodes[name])[0]
            _multiply(weight, _along_inputs(nodes[name], factor, content(weight).shape))
    return replace(graph, model=model)


def read_weight(node: ir.Node) -> Array:
    """The weight of a reader as (outputs, channels that one output reads, positions)."""
    weight = content(_constants(node)[0])
    if node.op_type == "Conv":
        return weight.reshape(*weight.shape[:2], -1)
    if node.op_type == "ConvTranspose":
        return np.swapaxes(weight, 0, 1).reshape(weight.shape[1], weight.shape[0], -1)
    return (weight if _transposed(node) else weight.T)[..., None]


def read_channels(node: ir.Node, channels: Array) -> Array:
    """Values by channel of the tensor read, laid out as `read_weight`: (outputs or 1, channels that one reads, 1)."""
    if node.op_type == "Conv":
        found = _along_inputs(node, channels, content(_constants(node)[0]).shape)
        return found.reshape(*found.shape[:2], 1)
    return channels[None, :, None]


def _along_outputs(node: ir.Node, factor: Array, ndim: int) -> Array:
    """`factor` shaped to multiply a constant of the writer `node`, of rank `ndim`."""
    if ndim == 1 or node.op_type in NORMALIZATIONS:
        return factor
    if node.op_type == "Mul":
        return factor.reshape(content(_constants(node)[0]).shape)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and _transposed(node)):
        return factor.reshape(-1, *[1] * (ndim - 1))
    return factor.reshape(1, -1, *[1] * (ndim - 2))


def _along_inputs(node: ir.Node, factor: Array, shape: tuple[int, ...]) -> Array:
    """`factor` shaped to multiply the weight, of shape `shape`, of the reader `node`."""
    if node.op_type == "Mul":
        return factor.reshape(shape)
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return np.repeat(factor.reshape(groups, shape[1]), shape[0] // groups, 0).reshape(
            *shape[:2], *[1] * len(shape[2:])
        )
    if node.op_type == "Gemm" and _transposed(node):
        return factor[None]
    return factor.reshape(-1, *[1] * (len(shape) - 1))


def _transposed(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))


def _constants(node: ir.Node) -> list[ir.Value]:
    """A node's own weight (or factor) and bias."""
    return [value for value in node.inputs[1:3] if value is not None]


def _multiply(value: ir.Value, factor: Array) -> None:
    set_content(value, content(value).astype(np.float64) * factor)
