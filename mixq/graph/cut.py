"""Cuts: places where a graph falls into a front and a tail, and the tail as a model of its own.

What a change behind a cut does can be computed from the values at the cut, without the front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mixq.graph.model import Graph, input_names


@dataclass(frozen=True, slots=True)
class Cut:
    """Before node number `position`: the computed tensors that cross it, and how many elements they have for one row.

    inputs: those of the graph that are wanted behind it too.
    """

    position: int
    tensors: tuple[str, ...]
    elements: int
    inputs: tuple[str, ...] = ()

    @property
    def start(self) -> tuple[str, ...]:
        """All that the tail reads."""
        return (*self.tensors, *self.inputs)


def find_cuts(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Cut]:
    """Every cut whose tensors are all float with the batch first; `shapes` are those of one row.

    What comes of the inputs without a layer, as masks and sizes do, is computed anew behind a cut.
    """
    nodes = list(graph.model.graph)
    index = {node: position for position, node in enumerate(nodes)}
    sources = _sources(graph)
    values = [*graph.model.graph.inputs, *(output for node in nodes for output in node.outputs)]
    spans = {str(value.name): _span(value, index, len(nodes)) for value in values}
    usable = {str(value.name): _batched(value, shapes) for value in values}
    found = []
    for position in range(1, len(nodes)):
        crossing = [name for name, (made, last) in spans.items() if made < position <= last]
        tensors = tuple(name for name in crossing if name not in sources)
        if tensors and all(usable[name] for name in tensors):
            inputs = dict.fromkeys(source for name in crossing for source in sources.get(name, ()))
            found.append(Cut(position, tensors, sum(math.prod(shapes[name]) for name in tensors), tuple(inputs)))
    return found


def _sources(graph: Graph) -> dict[str, tuple[str, ...]]:
    """By tensor that is computed without a layer: the inputs of the graph that it comes of."""
    found: dict[str, tuple[str, ...]] = {name: (name,) for name in input_names(graph.model)}
    for node in graph.model.graph:
        read = [str(value.name) for value in node.inputs if value is not None and not value.is_initializer()]
        if str(node.name) not in graph.by_name and all(name in found for name in read):
            inputs = tuple(dict.fromkeys(source for name in read for source in found[name]))
            found |= {str(value.name): inputs for value in node.outputs}
    return found


def joints(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> list[Cut]:
    """Cuts through one tensor: all that layers before have computed passes it on its way to a layer behind.

    The last one between two layers; what reaches layers from the inputs without a layer before it, as a mask does, does
    not count. These are the borders of residual blocks, of transformer layers, of the layers of a plain chain.
    """
    nodes = list(graph.model.graph)
    index = {node: position for position, node in enumerate(nodes)}
    sources = _sources(graph)
    values = {str(value.name): value for node in nodes for value in node.outputs}
    computed = {name: value for name, value in values.items() if name not in sources}
    spans = {name: _span(value, index, len(nodes)) for name, value in computed.items()}
    found: dict[int, Cut] = {}
    layers = 0
    for position in range(1, len(nodes)):
        layers += str(nodes[position - 1].name) in graph.by_name
        crossing = [name for name, (made, last) in spans.items() if made < position <= last]
        if len(crossing) == 1 and _batched(computed[crossing[0]], shapes):
            (name,) = crossing
            found[layers] = Cut(position, (name,), math.prod(shapes[name]))
    return [cut for before, cut in found.items() if before < len(graph.layers)]


def tail(model: ir.Model, tensors: Sequence[str], outputs: Sequence[str] = ()) -> ir.Model:
    """A copy of the part that gives `outputs` (by default the graph's own); its inputs: what it needs of `tensors`."""
    wanted = list(outputs) or [str(value.name) for value in model.graph.outputs]
    part = ir.convenience.extract(model.graph, tensors, wanted)
    part.inputs[:] = [value for value in part.inputs if list(value.uses()) or value.is_graph_output()]
    return ir.Model(part, ir_version=model.ir_version)


def _span(value: ir.Value, index: Mapping[ir.Node, int], count: int) -> tuple[int, int]:
    """(number of the node that makes it, −1 for an input; number of the last that reads it)."""
    producer = value.producer()
    made = -1 if producer is None else index[producer]
    last = max((index[reader] for reader in value.consumers()), default=made)
    return made, count if value.is_graph_output() else last


def _batched(value: ir.Value, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    shape = shapes.get(str(value.name), ())
    return value.dtype == ir.DataType.FLOAT and len(shape) > 0 and shape[0] == 1 and not value.is_graph_output()
