"""Ops that run on codes although the runtime has no integer form of them: written in a form that it has."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.affine import QParams
from mixq.graph.edit import nodes_by_name
from mixq.graph.quantize import constant, dequantized
from mixq.task import Array


def rewrite_on_codes(model: ir.Model, names: Collection[str]) -> None:
    """Rewrite the nodes `names`, which stand between pairs. Changes `model`."""
    nodes = nodes_by_name(model.graph)
    for name in names:
        REWRITES[nodes[name].op_type](model.graph, nodes[name])


def _pad_codes(graph: ir.Graph, node: ir.Node) -> None:
    """DequantizeLinear → Pad → QuantizeLinear of equal qparams: Pad on uint8, with the code of zero."""
    back, (quantizer,) = _dequantizer(node), node.outputs[0].consumers()
    node.resize_inputs(max(3, len(node.inputs)))
    node.replace_input_with(0, back.inputs[0])
    node.replace_input_with(2, back.inputs[2])
    old, new = quantizer.outputs[0], node.outputs[0]
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(quantizer, safe=True)
    new.name, new.type = old.name, ir.TensorType(ir.DataType.UINT8)


def _batch_norm_as_convolution(graph: ir.Graph, node: ir.Node) -> None:
    """γ (x − μ) / √(σ² + ε) + β is a depthwise 1 × 1 convolution, whose one weight a channel has the code ±127."""
    slope, shift = _slope_and_shift(node)
    data_scale = constant(_dequantizer(node), 1)
    weight = affine.symmetric(affine.with_room_for_bias(np.abs(slope), shift, data_scale), 0)
    bias = QParams(weight.scale * data_scale, np.zeros(len(shift), np.int32), 0)
    name, old = str(node.name), node.outputs[0]
    codes = affine.quantize(slope.reshape(-1, 1, 1, 1), weight, affine.S8)
    inputs = [
        node.inputs[0],
        dequantized(graph, node, codes, weight, f"{name}.weight"),
        dequantized(graph, node, affine.quantize(shift, bias, affine.S32), bias, f"{name}.bias"),
    ]
    convolution = ir.node("Conv", inputs, {"group": len(slope), "kernel_shape": [1, 1]}, name=name)
    new = convolution.outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(node, convolution)
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)
    new.name = old.name


def _slope_and_shift(node: ir.Node) -> tuple[Array, Array]:
    """Of each channel, float64."""
    gamma, beta, mean, variance = (constant(node, index).astype(np.float64) for index in range(1, 5))
    slope = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return slope, beta - mean * slope


def _dequantizer(node: ir.Node) -> ir.Node:
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        raise ValueError(f"{node.name} does not read dequantized codes")
    return producer


REWRITES: dict[str, Callable[[ir.Graph, ir.Node], None]] = {
    "Pad": _pad_codes,
    "BatchNormalization": _batch_norm_as_convolution,
}
