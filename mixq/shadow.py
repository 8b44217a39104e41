"""Shadow layers: the signal-to-noise ratio that a scheme leaves at every layer's own output, in one run of one model.

Beside each layer stands its shadow in the scheme; both read the same FP32 input, so no error of another layer enters.
The sums of squares are taken inside the graph: what leaves it are two numbers a layer and row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, RecipeStep
from mixq.graph.edit import add_initializer, nodes_by_name
from mixq.graph.model import Graph, Layer
from mixq.graph.placement import Placement
from mixq.ptq import Prepared

SUFFIX = ".shadow"


def shadow_placement(placement: Placement) -> Placement:
    """A pair on each shadow's own input and nowhere else: the layers beside them keep reading and giving floats."""
    return Placement(transparent=frozenset(), forms=placement.forms)


def shadow_graph(graph: Graph) -> Graph:
    """`graph` with a shadow beside each layer; only the shadows count as its layers. Outputs: noise and signal."""
    model = graph.model.clone()
    nodes = nodes_by_name(model.graph)
    model.graph.outputs.clear()
    for layer in graph.layers:
        node = nodes[layer.name]
        shadow = ir.node(node.op_type, list(node.inputs), dict(node.attributes), name=layer.name + SUFFIX)
        _like(shadow.outputs[0], node.outputs[0], layer.output + SUFFIX)
        noise = _difference(layer, node.outputs[0], shadow.outputs[0])
        model.graph.insert_after(node, [shadow, noise])
        _sum_of_squares(model.graph, layer, noise, noise_name(layer.name))
        _sum_of_squares(model.graph, layer, node, signal_name(layer.name))
    return Graph(model, tuple(_shadow(layer) for layer in graph.layers))


def _shadow(layer: Layer) -> Layer:
    own = layer.bias if layer.adds_bias else None
    return replace(layer, name=layer.name + SUFFIX, output=layer.output + SUFFIX, bias=own)


def shadowed(prepared: Prepared) -> Prepared:
    """The network with shadows, which have what was prepared for their layers; not the bias that another node adds."""
    return replace(
        prepared,
        graph=shadow_graph(prepared.graph),
        magnitudes={name + SUFFIX: found for name, found in prepared.magnitudes.items()},
        values={
            (name + SUFFIX, index): found
            for (name, index), found in prepared.values.items()
            if index == 1 or prepared.graph.by_name[name].adds_bias
        },
    )


def noise_name(layer: str) -> str:
    return f"{layer}.noise"


def signal_name(layer: str) -> str:
    return f"{layer}.signal"


def _difference(layer: Layer, want: ir.Value, have: ir.Value) -> ir.Node:
    node = ir.node("Sub", [want, have], name=f"{layer.name}.error")
    _like(node.outputs[0], want, f"{layer.output}.error")
    return node


def _sum_of_squares(graph: ir.Graph, layer: Layer, node: ir.Node, name: str) -> None:
    """An output of shape (rows,): the squares of the node's output, summed over all other axes."""
    value = node.outputs[0]
    axes = add_initializer(graph, f"{name}.axes", np.arange(1, len(layer.output_shape), dtype=np.int64))
    reduced = ir.node("ReduceSumSquare", [value, axes], {"keepdims": 0}, name=name)
    reduced.outputs[0].name = name
    reduced.outputs[0].shape, reduced.outputs[0].type = ir.Shape(("batch",)), ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(node, [reduced])
    graph.outputs.append(reduced.outputs[0])


def _like(value: ir.Value, other: ir.Value, name: str) -> None:
    value.name, value.shape, value.type = name, other.shape, other.type


def shadow_config(
    graph: Graph, layers: Iterable[str], scheme: LayerScheme, recipe: tuple[RecipeStep, ...], fingerprint: str
) -> MixedPrecisionConfig:
    """The shadows of `layers` in `scheme`, everything else in FP32."""
    fp32, names = LayerScheme(precision=Precision.FP32), graph.layer_names
    schemes = dict.fromkeys([*names, *(name + SUFFIX for name in names)], fp32)
    schemes |= {name + SUFFIX: scheme for name in layers}
    return MixedPrecisionConfig(model=fingerprint, schemes=schemes, recipe=recipe)
