"""Gives every layer that could have a bias one of zeros.

What rounding shifts in a layer's outputs can then be taken off again, by bias correction or by training. Convolutions
lack a bias where something stands between them and their batch norm. A MatMul takes none: its bias is what an Add
behind it adds.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import add_initializer
from mixq.graph.layers import attribute, channel_axis, constant_shape, is_matrix, weight_of

TAKING = ("Conv", "ConvTranspose", "Gemm")


def add_missing_biases(model: ir.Model) -> bool:
    """To each layer that has no bias but whose op takes one; whether there was one. Changes `model`."""
    missing = [node for node in model.graph if node.op_type in TAKING and is_matrix(node) and not _has_bias(node)]
    for node in missing:
        weight = weight_of(node)
        channels = 0 if weight is None else constant_shape(weight)[channel_axis(node)]
        if node.op_type == "ConvTranspose":
            channels *= attribute(node, "group", 1)
        node.resize_inputs(3)
        # Named for the output, whose name stays the same when the network is written to a file, and read again.
        name = f"{node.outputs[0].name}.zero_bias"
        node.replace_input_with(2, add_initializer(model.graph, name, np.zeros(channels, np.float32)))
    return bool(missing)


def _has_bias(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None
