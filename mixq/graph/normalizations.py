"""Which batch normalizations belong to which layer: those that read its output, with nothing but activations between.

Exporters fold a normalization into the layer before it where they can; what is left stands behind an activation.
"""

from __future__ import annotations

import onnx_ir as ir

from mixq.graph.model import Graph

ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "Clip", "HardSwish", "Sigmoid", "Tanh", "Elu", "Identity"})
FACTOR, SHIFT = 1, 2  # the inputs γ and β


def normalizations(graph: Graph) -> dict[str, tuple[str, ...]]:
    """By layer, the names of its BatchNormalizations that have constant γ and β of their own."""
    found: dict[str, list[str]] = {}
    for node in graph.model.graph:
        if node.op_type == "BatchNormalization" and all(_own(node, index) for index in (FACTOR, SHIFT)):
            layer = _layer_before(node, graph)
            if layer is not None:
                found.setdefault(layer, []).append(str(node.name))
    return {layer: tuple(names) for layer, names in found.items()}


def _own(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    return value is not None and value.const_value is not None and len(list(value.uses())) == 1


def _layer_before(node: ir.Node, graph: Graph) -> str | None:
    value = node.inputs[0]
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in ACTIVATIONS:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return str(producer.name) if producer is not None and str(producer.name) in graph.by_name else None
