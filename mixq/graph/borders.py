"""Borders: which layers read what which others wrote, and how much of it; where precisions differ, it is converted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from mixq.graph.layers import is_layer
from mixq.graph.model import Graph


@dataclass(frozen=True, slots=True)
class Border:
    """`reader` reads, through ops that are no layers, what `writer` wrote; elements: of the reader's input, a row."""

    writer: str
    reader: str
    elements: int


def find_borders(graph: Graph) -> list[Border]:
    """All of them, in the graph's order."""
    found = []
    known: dict[ir.Node, frozenset[str]] = {}
    names = graph.by_name
    for node in graph.model.graph:
        sources = frozenset[str]().union(*(_writers(value, known) for value in node.inputs))
        if node.name in names and is_layer(node):
            layer = names[str(node.name)]
            read = frozenset[str]().union(*(_writers(node.inputs[index], known) for index in layer.operands))
            found += [Border(writer, layer.name, math.prod(layer.input_shape)) for writer in sorted(read)]
            sources = frozenset({layer.name})
        known[node] = sources
    return found


def _writers(value: ir.Value | None, known: dict[ir.Node, frozenset[str]]) -> frozenset[str]:
    """The layers that `value` comes from."""
    node = None if value is None else value.producer()
    return frozenset() if node is None else known.get(node, frozenset())
