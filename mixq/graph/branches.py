"""Scales of their own for the channels that some layers read, apart from what else reads or writes the tensor.

A post-norm transformer (Devlin et al. 2019) adds what the normalization wrote to what the matrices behind it give. To
scale the matrices' inputs alone (SmoothQuant, Xiao et al. 2023, section 4) takes a multiplication between the two,
which a runtime fuses with the quantization behind it. Depthwise convolutions take any scale of their input's channels
back for nothing; where they read a residual sum, or what no factor passes through (ReLU6), the multiplication gives it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import add_initializer, content, insert_behind, nodes_by_name
from mixq.graph.model import Graph
from mixq.task import Array

SUFFIX = "/branch_scale"


def with_branch_scales(graph: Graph) -> Graph:
    """The same function, with multiplications by ones: between each such normalization and the matrices that read it,
    and between any node and the depthwise convolutions that read it."""
    model = graph.model.clone()
    matrices, depthwise = {layer.name for layer in graph.matrices}, _depthwise(graph)
    for node in list(model.graph):
        _scale_matrices(model.graph, node, matrices)
        _scale_depthwise(model.graph, node, depthwise)
    return _with_model(graph, model)


def depthwise_scales(graph: Graph) -> dict[str, str]:
    """Of the scales of ones that depthwise convolutions read: by name of the multiplication, the tensor before it."""
    depthwise, found = _depthwise(graph), {}
    for name in _idle_scales(graph):
        (tensor, _), uses = graph.nodes[name].inputs, graph.nodes[name].outputs[0].uses()
        if tensor is not None and any(use.node.name in depthwise for use in uses):
            found[name] = str(tensor.name)
    return found


def without_scales(graph: Graph, names: Collection[str]) -> Graph:
    """Without those of the multiplications `names`, which must multiply by ones."""
    model = graph.model.clone()
    for node in [node for node in model.graph if node.name in names]:
        written, factor = node.inputs
        if written is not None and factor is not None:
            _let_read([reader for reader, _ in node.outputs[0].uses()], written)
            model.graph.remove(node, safe=True)
            del model.graph.initializers[str(factor.name)]
    return _with_model(graph, model)


def without_idle_scales(graph: Graph) -> Graph:
    """Without those that multiply by nothing but ones."""
    return without_scales(graph, _idle_scales(graph))


def _idle_scales(graph: Graph) -> list[str]:
    factors = {name: node.inputs[1] for name, node in graph.nodes.items() if _is_branch_scale(node)}
    return [name for name, one in factors.items() if one is not None and (content(one) == 1).all()]


def _depthwise(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The layers whose outputs read one channel each, with the shape that a factor for each of their channels has."""
    groups = {layer: graph.nodes[layer.name].attributes.get_int("group", 1) for layer in graph.matrices}
    return {
        layer.name: (count, *[1] * (len(layer.weight_shape) - 2))
        for layer, count in groups.items()
        if layer.op == "Conv" and count > 1 and layer.weight_shape[1] == 1
    }


def _is_branch_scale(node: ir.Node) -> bool:
    return node.op_type == "Mul" and str(node.name).endswith(SUFFIX)


def _scale_matrices(graph: ir.Graph, norm: ir.Node, matrices: Collection[str]) -> None:
    """Where `norm` is a normalization that matrices and something else read."""
    uses, written = list(norm.outputs[0].uses()), norm.outputs[0]
    readers = [node for node, index in uses if index == 0 and node.name in matrices]
    factor = _ones(norm) if norm.op_type == "LayerNormalization" else None
    if readers and factor is not None and (len(readers) < len(uses) or written.is_graph_output()):
        _let_read(readers, _insert_scale(graph, str(norm.name), written, factor))


def _scale_depthwise(graph: ir.Graph, node: ir.Node, depthwise: Mapping[str, tuple[int, ...]]) -> None:
    """Where layers of `depthwise` read what `node` writes."""
    for written in () if _is_branch_scale(node) else node.outputs:
        readers = [reader for reader, index in written.uses() if index == 0 and reader.name in depthwise]
        if readers:
            name = str(readers[0].name)
            _let_read(readers, _insert_scale(graph, name, written, np.ones(depthwise[name], np.float32)))


def _ones(norm: ir.Node) -> Array | None:
    """One for each channel; None where several axes are normalized, or the factor is no constant."""
    gamma = norm.inputs[1]
    if gamma is None or not gamma.is_initializer() or content(gamma).ndim != 1:
        return None
    return np.ones_like(content(gamma))


def _insert_scale(graph: ir.Graph, norm: str, written: ir.Value, factor: Array) -> ir.Value:
    name = norm + SUFFIX
    node = ir.node("Mul", [written, add_initializer(graph, f"{name}.weight", factor)], name=name)
    scaled = node.outputs[0]
    scaled.name, scaled.shape, scaled.type = name, written.shape, written.type
    insert_behind(graph, written, [node])
    return scaled


def _let_read(readers: Iterable[ir.Node], value: ir.Value) -> None:
    for reader in readers:
        reader.replace_input_with(0, value)


def _with_model(graph: Graph, model: ir.Model) -> Graph:
    """`model`, and the layers with the inputs that they have there."""
    nodes = nodes_by_name(model.graph)
    reads = {name: str(value.name) for name, node in nodes.items() if (value := node.inputs[0]) is not None}
    layers = (replace(layer, input=reads[layer.name]) if layer.multiplies else layer for layer in graph.layers)
    return replace(graph, model=model, layers=tuple(layers))
