"""Small edits of an ONNX IR graph that keep its outputs' names."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from mixq.graph.sweep import Edge
from mixq.task import Array


def add_initializer(graph: ir.Graph, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """The initializer `name`; made from `array` unless it is there already."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(array, order="C"), name=name, dtype=dtype)
        shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, const_value=tensor, shape=shape, type=kind))
    return graph.initializers[name]


def content(value: ir.Value) -> Array:
    """What a constant holds. Raises ValueError where the value is none."""
    if value.const_value is None:
        raise ValueError(f"{value.name} is not constant")
    return value.const_value.numpy()


def set_content(value: ir.Value, array: Array) -> None:
    """Let a constant hold `array`, in float32."""
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)


def is_own(value: ir.Value) -> bool:
    """Whether it is a constant that one node alone reads, at one place."""
    return value.is_initializer() and len(list(value.uses())) == 1


def insert_behind(graph: ir.Graph, value: ir.Value, nodes: Iterable[ir.Node]) -> None:
    """Put `nodes` right after the producer of `value`, or first where it is a graph input."""
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, nodes)
    elif len(graph):
        graph.insert_before(graph[0], nodes)


def redirect(nodes: dict[str, ir.Node], edges: Iterable[Edge], replacement: ir.Value) -> None:
    """Let `edges` read `replacement`."""
    for name, index in edges:
        nodes[name].replace_input_with(index, replacement)


def replace_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Where `old` is an output of the graph, `new` becomes it and takes its name."""
    if not old.is_graph_output():
        return
    index = list(graph.outputs).index(old)
    graph.outputs[index] = new
    old.name, new.name = f"{old.name}_before", old.name


def nodes_by_name(graph: ir.Graph) -> dict[str, ir.Node]:
    return {str(node.name): node for node in graph}
