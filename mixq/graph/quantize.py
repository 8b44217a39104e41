"""Writes the INT8 layers of a configuration into a graph as QuantizeLinear/DequantizeLinear pairs.

Activations per tensor, u8, asymmetric (s8, symmetric, before kernels that take no zero point); weights per output
channel or tensor, s8, symmetric, stored as int8; biases as s32 with scale = input scale × weight scale, so that the
integer kernels need no further rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.affine import QParams
from mixq.graph.edit import add_initializer, insert_behind, nodes_by_name, redirect, replace_output
from mixq.graph.layers import bias_place
from mixq.graph.model import Graph, Layer, values_by_name
from mixq.graph.plan import Plan
from mixq.task import Array


@dataclass(frozen=True)
class Parameters:
    """What lowering needs beside the graph: finished, and blind to the algorithm that made it.

    activations: qparams by quantized tensor; weights: qparams by INT8 layer; values: by (layer, input index) the
    weights (1) and biases (2) that replace the graph's own (trained or corrected), of the same shape.
    """

    activations: Mapping[str, QParams] = field(default_factory=dict)
    weights: Mapping[str, QParams] = field(default_factory=dict)
    values: Mapping[tuple[str, int], Array] = field(default_factory=dict)


def quantize_activations(model: ir.Model, plan: Plan, activations: Mapping[str, QParams]) -> None:
    """Insert one pair for each tensor of `plan`, and let its edges read behind it."""
    values, nodes = values_by_name(model), nodes_by_name(model.graph)
    for tensor, edges in plan.reads.items():
        value = values[tensor]
        pair = _pair(model.graph, value, *_stored(activations[tensor], signed=tensor in plan.signed), tensor)
        insert_behind(model.graph, value, pair)
        redirect(nodes, edges, pair[1].outputs[0])
        if tensor in plan.outputs:
            replace_output(model.graph, value, pair[1].outputs[0])


def quantize_weights(
    model: ir.Model, graph: Graph, plan: Plan, parameters: Parameters, trainable: Collection[str] = ()
) -> None:
    """Weights of the layers that read codes as int8, biases as int32.

    Layers in `trainable` keep float ones behind a QuantizeLinear → DequantizeLinear.
    """
    nodes = nodes_by_name(model.graph)
    for name in plan.inputs:
        layer, node = graph.by_name[name], nodes[name]
        if layer.weight is None:
            continue
        qparams = parameters.weights[name]
        if name in trainable:
            if layer.bias is not None:
                give_own(model, node, 2, bias_of(node))
            give_own(model, node, 1, constant(node, 1))
            pair = _pair(model.graph, _input(node, 1), qparams, np.int8, weight_name(name))
            model.graph.insert_before(node, pair)
            node.replace_input_with(1, pair[1].outputs[0])
            continue
        store_weight(model.graph, node, layer, qparams)
        if layer.adds_bias:
            _store_bias(model.graph, node, layer, parameters.activations[plan.inputs[name][0]], qparams)


def _stored(qparams: QParams, *, signed: bool) -> tuple[QParams, type[np.integer]]:
    """A tensor's u8 parameters as they are written: where it may be signed, the zero point 128 as s8's 0."""
    if signed and qparams.zero_point == affine.MIDDLE:
        return QParams(qparams.scale, np.zeros_like(qparams.zero_point)), np.int8
    return qparams, np.uint8


def own_name(layer: str, index: int) -> str:
    """The name of a layer's own copy of its weight (index 1) or bias (2)."""
    return f"{layer}.{'weight' if index == 1 else 'bias'}.own"


def weight_name(layer: str) -> str:
    """What a layer's weight is called as a quantized tensor."""
    return f"{layer}.weight"


def codes_name(layer: str) -> str:
    """The name of the initializer that holds the codes of a layer's weight."""
    return f"{weight_name(layer)}_quantized"


def scale_name(tensor: str) -> str:
    """The name of the scale of a quantized tensor; a layer's weight is one too (`weight_name`)."""
    return f"{tensor}_scale"


def pair_name(tensor: str) -> str:
    """The name of the DequantizeLinear of a tensor's pair."""
    return f"{tensor}_dequantize"


def give_own(model: ir.Model, node: ir.Node, index: int, value: Array) -> None:
    """Let a layer have its own weight (index 1) or bias (2), so that another layer that shares it keeps the old one."""
    reader, place = _place_of_bias(node) if index == 2 else (node, index)
    own = add_initializer(model.graph, own_name(str(node.name), index), value.astype(np.float32))
    reader.replace_input_with(place, own)


def bias_of(node: ir.Node) -> Array:
    """The value of a layer's bias."""
    return constant(*_place_of_bias(node))


def _place_of_bias(node: ir.Node) -> tuple[ir.Node, int]:
    place = bias_place(node)
    if place is None:
        raise ValueError(f"{node.name} has no bias")
    return place


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.name} has no input {index}")
    return value


def constant(node: ir.Node, index: int) -> Array:
    """The value of the initializer that `node` reads at `index`."""
    tensor = _input(node, index).const_value
    if tensor is None:
        raise ValueError(f"{node.name}: input {index} is not constant")
    return tensor.numpy()


def _pair(graph: ir.Graph, value: ir.Value, qparams: QParams, dtype: type[np.integer], name: str) -> list[ir.Node]:
    scale = add_initializer(graph, scale_name(name), qparams.scale)
    zero_point = add_initializer(graph, f"{name}_zero_point", qparams.zero_point.astype(dtype))
    attributes = {} if qparams.axis is None else {"axis": qparams.axis}
    quantizer = ir.node("QuantizeLinear", [value, scale, zero_point], attributes, name=f"{name}_quantize")
    quantizer.outputs[0].name = f"{name}_quantized"
    back = ir.node("DequantizeLinear", [quantizer.outputs[0], scale, zero_point], attributes, name=pair_name(name))
    back.outputs[0].name = f"{name}_dequantized"
    back.outputs[0].shape, back.outputs[0].type = value.shape, value.type
    return [quantizer, back]


def dequantized(graph: ir.Graph, before: ir.Node, codes: Array, qparams: QParams, name: str) -> ir.Value:
    """The value of the constant `codes`, behind a DequantizeLinear that stands before the node `before`."""
    inputs = [
        add_initializer(graph, f"{name}_quantized", codes),
        add_initializer(graph, scale_name(name), qparams.scale),
    ]
    if codes.dtype != np.int32:  # of these the zero point is 0 by the standard: 4 bytes a channel that nobody needs
        inputs.append(add_initializer(graph, f"{name}_zero_point", qparams.zero_point.astype(codes.dtype)))
    attributes = {} if qparams.axis is None else {"axis": qparams.axis}
    back = ir.node("DequantizeLinear", inputs, attributes, name=pair_name(name))
    back.outputs[0].name = f"{name}_dequantized"
    back.outputs[0].type, back.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.shape)
    graph.insert_before(before, back)
    return back.outputs[0]


def store_weight(graph: ir.Graph, node: ir.Node, layer: Layer, qparams: QParams) -> None:
    """Let the layer read its weight as int8 behind a DequantizeLinear."""
    codes = affine.quantize(constant(node, 1), qparams, affine.S8)
    node.replace_input_with(1, dequantized(graph, node, codes, qparams, weight_name(layer.name)))


def _store_bias(graph: ir.Graph, node: ir.Node, layer: Layer, data: QParams, weight: QParams) -> None:
    bias = constant(node, 2)
    scale = np.tile(data.scale * weight.scale, len(bias) // weight.scale.size)  # groups of a ConvTranspose share scales
    qparams = QParams(scale, np.zeros(scale.shape, np.int32), 0)
    codes = affine.quantize(bias, qparams, affine.S32)
    node.replace_input_with(2, dequantized(graph, node, codes, qparams, f"{layer.name}.bias"))
