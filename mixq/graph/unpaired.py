"""Writes INT8 layers whose inputs have no calibrated pair: weight-only, dynamic, embeddings.

The weight is stored as int8 with a scale a channel. How a runtime is led to the kernels that it has for that differs:
`Forms` names how.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.affine import QParams
from mixq.config import Activation, MixedPrecisionConfig
from mixq.graph.edit import add_initializer, insert_behind, nodes_by_name
from mixq.graph.layers import attribute
from mixq.graph.model import Graph, Layer
from mixq.graph.placement import Forms
from mixq.graph.quantize import Parameters, codes_name, constant, scale_name, store_weight, weight_name


def write_unpaired(
    model: ir.Model, graph: Graph, config: MixedPrecisionConfig, parameters: Parameters, forms: Forms
) -> None:
    """Rewrite the weight-only and dynamic layers of `config`. Changes `model`."""
    nodes, dynamic = nodes_by_name(model.graph), config.int8_layers(Activation.DYNAMIC)
    weight_only = forms.weight_only_beside_dynamic if dynamic else forms.weight_only
    form_of = dict.fromkeys(dynamic, forms.dynamic)
    form_of |= dict.fromkeys(config.int8_layers(Activation.WEIGHT_ONLY), weight_only)
    for name, form in form_of.items():
        layer = graph.by_name[name]
        write = _look_codes_up if layer.looks_up else FORMS[form]
        write(model.graph, nodes[name], layer, parameters.weights.get(name))


def _stored(graph: ir.Graph, node: ir.Node, layer: Layer, weight: QParams | None) -> None:
    """int8 → DequantizeLinear → the layer. OpenVINO multiplies by such a weight without unpacking it."""
    store_weight(graph, node, layer, _known(weight))


def _folded(graph: ir.Graph, node: ir.Node, layer: Layer, weight: QParams | None) -> None:
    """int8 → Cast → Cast → Mul → the layer: what a runtime folds into a float weight when it loads the model.

    DequantizeLinear it would not: ONNX Runtime (1.31) computes that anew in every run, and OpenVINO (2026.4) quantizes
    the input at run time if one layer of the network is to be; hence the detour over int32, which it does not look for.
    """
    qparams = _known(weight)
    codes, name = affine.quantize(constant(node, 1), qparams, affine.S8), weight_name(layer.name)
    scale = np.asarray(affine.along(qparams.scale, qparams.axis, codes.ndim), np.float32)
    stored = add_initializer(graph, codes_name(layer.name), codes)
    wide = _node("Cast", [stored], f"{name}_wide", {"to": ir.DataType.INT32.value}, kind=ir.DataType.INT32)
    cast = _node("Cast", [wide.outputs[0]], f"{name}_cast", {"to": ir.DataType.FLOAT.value})
    product = _node("Mul", [cast.outputs[0], add_initializer(graph, scale_name(name), scale)], f"{name}_dequantize")
    product.outputs[0].shape = ir.Shape(codes.shape)
    graph.insert_before(node, [wide, cast, product])
    node.replace_input_with(1, product.outputs[0])


def _integer_product(graph: ir.Graph, node: ir.Node, layer: Layer, weight: QParams | None) -> None:
    """DynamicQuantizeLinear → MatMulInteger, its result times both scales, the bias added in float."""
    data, zero, scale = _quantized_at_run_time(graph, node, 0)
    if layer.weight is None:
        other, other_zero, other_scale = _quantized_at_run_time(graph, node, 1)
        inputs: list[ir.Value | None] = [data, other, zero, other_zero]
    else:
        codes = affine.quantize(constant(node, 1), _known(weight), affine.S8)
        if node.op_type == "Gemm" and attribute(node, "transB", 0):
            codes = np.ascontiguousarray(codes.T)
        inputs = [data, add_initializer(graph, codes_name(layer.name), codes), zero]
        other_scale = add_initializer(graph, scale_name(weight_name(layer.name)), _known(weight).scale)
    product = _node("MatMulInteger", inputs, layer.name, kind=ir.DataType.INT32)
    cast = _node("Cast", [product.outputs[0]], f"{layer.name}.cast", {"to": ir.DataType.FLOAT.value})
    scales = _node("Mul", [scale, other_scale], f"{layer.name}.scales")
    scaled = _node("Mul", [cast.outputs[0], scales.outputs[0]], f"{layer.name}.scaled")
    nodes = [product, cast, scales, scaled]
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        nodes.append(_node("Add", [scaled.outputs[0], node.inputs[2]], f"{layer.name}.biased"))
    graph.insert_before(node, nodes)
    _replace(graph, node, nodes[-1].outputs[0])


def _look_codes_up(graph: ir.Graph, node: ir.Node, layer: Layer, weight: QParams | None) -> None:
    """Rows of codes are looked up, and only these are dequantized."""
    qparams = _known(weight)
    stored = add_initializer(graph, codes_name(layer.name), affine.quantize(constant(node, 0), qparams, affine.S8))
    rank = len(node.outputs[0].shape or ())
    found = _node("Gather", [stored, node.inputs[1]], layer.name, {"axis": 0}, kind=ir.DataType.INT8)
    scale = add_initializer(graph, scale_name(weight_name(layer.name)), qparams.scale)
    zero = add_initializer(graph, f"{layer.name}.weight_zero_point", qparams.zero_point.astype(np.int8))
    axis = {} if qparams.axis is None else {"axis": rank - 1}
    back = _node("DequantizeLinear", [found.outputs[0], scale, zero], f"{layer.name}.dequantize", axis)
    graph.insert_before(node, [found, back])
    _replace(graph, node, back.outputs[0])


def _quantized_at_run_time(graph: ir.Graph, node: ir.Node, index: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Codes, zero point and scale of an input, found once for all that read it."""
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    name = f"{value.name}_dynamic_quantize"
    for reader in value.consumers():
        if reader.name == name:
            return reader.outputs[0], reader.outputs[2], reader.outputs[1]
    quantizer = ir.node("DynamicQuantizeLinear", [value], name=name, num_outputs=3)
    for output, part, kind in zip(
        quantizer.outputs,
        ("quantized", "scale", "zero_point"),
        (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
        strict=True,
    ):
        output.name, output.type = f"{value.name}_dynamic_{part}", ir.TensorType(kind)
    insert_behind(graph, value, [quantizer])
    return quantizer.outputs[0], quantizer.outputs[2], quantizer.outputs[1]


def _node(
    op: str,
    inputs: list[ir.Value | None] | list[ir.Value],
    name: str,
    attributes: dict[str, int] | None = None,
    kind: ir.DataType = ir.DataType.FLOAT,
) -> ir.Node:
    """A node with one output."""
    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name, node.outputs[0].type = f"{name}_out", ir.TensorType(kind)
    return node


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """`new` becomes what `node` gave, by the same name; the node goes."""
    old = node.outputs[0]
    new.shape = old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = old.name


def _known(weight: QParams | None) -> QParams:
    if weight is None:
        raise ValueError("the layer has no qparams for its weight")
    return weight


FORMS: MappingProxyType[str, Callable[[ir.Graph, ir.Node, Layer, QParams | None], None]] = MappingProxyType(
    {"stored": _stored, "folded": _folded, "integer_product": _integer_product}
)
