"""Scales of their own: where a normalization feeds the residual too, its readers' scale can't be folded into it.

A post-norm transformer (Devlin et al. 2019) adds what the normalization wrote to what the matrices behind it give. To
scale the matrices' inputs alone (SmoothQuant, Xiao et al. 2023, section 4) takes a multiplication between the two,
which a runtime fuses with the quantization behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import add_initializer, content, insert_behind, nodes_by_name
from mixq.graph.model import Graph
from mixq.task import Array

SUFFIX = "/branch_scale"


def with_branch_scales(graph: Graph) -> Graph:
    """The same function, with a multiplication by ones between each such normalization and the layers that read it."""
    model = graph.model.clone()
    matrices = {layer.name for layer in graph.matrices}
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        uses, written = list(norm.outputs[0].uses()), norm.outputs[0]
        readers = [node for node, index in uses if index == 0 and node.name in matrices]
        factor = _ones(norm)
        if readers and factor is not None and (len(readers) < len(uses) or written.is_graph_output()):
            scaled = _insert_scale(model.graph, str(norm.name), written, factor)
            _let_read(readers, scaled)
    return _with_model(graph, model)


def without_idle_scales(graph: Graph) -> Graph:
    """Without those that multiply by nothing but ones."""
    model = graph.model.clone()
    for node in [node for node in model.graph if node.op_type == "Mul" and str(node.name).endswith(SUFFIX)]:
        written, factor = node.inputs
        if written is not None and factor is not None and (content(factor) == 1).all():
            _let_read([reader for reader, _ in node.outputs[0].uses()], written)
            model.graph.remove(node, safe=True)
            del model.graph.initializers[str(factor.name)]
    return _with_model(graph, model)


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
