"""Functions of one tensor, value by value, that have an integer form: what the codes of their input are worth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mixq.task import Array

Function = Callable[[Array], Array]


def _leaky_relu(node: ir.Node) -> Function:
    alpha = node.attributes.get_float("alpha", 0.01)
    return lambda x: np.where(x < 0, alpha * x, x)


def _sigmoid(node: ir.Node) -> Function:
    return lambda x: 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[[ir.Node], Function]] = {"LeakyRelu": _leaky_relu, "Sigmoid": _sigmoid}


def only_readers(model: ir.Model) -> dict[str, Function]:
    """By tensor, the function that is all that reads it; the graph does not give it out either."""
    found = {}
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        alone = source is not None and len(source.uses()) == 1 and not source.is_graph_output()
        if source is not None and alone and node.op_type in FUNCTIONS:
            found[str(source.name)] = FUNCTIONS[node.op_type](node)
    return found
