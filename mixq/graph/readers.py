"""Questions about the neighborhood of a tensor that placing pairs turns on."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from mixq.graph.layers import is_layer, is_product
from mixq.graph.placement import Placement


def data_inputs(node: ir.Node) -> list[ir.Value | None]:
    """The inputs whose values a transparent op hands on."""
    return list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]


def layer_operands(node: ir.Node) -> list[ir.Value | None]:
    """The activations that an INT8 layer multiplies."""
    return list(node.inputs[:2]) if is_product(node) else [node.inputs[0]]


def operands(node: ir.Node) -> list[ir.Value | None]:
    """The inputs that have to be quantized where the op runs on codes."""
    if node.op_type in ("Add", "Mul", "Concat"):
        return list(node.inputs)
    return [node.inputs[0]]


def is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def wants_output_pair(layer: ir.Node, placement: Placement) -> bool:
    """Whether the integer kernel of a layer is picked only with a pair on its output."""
    readers = layer.outputs[0].consumers()
    fused = len(readers) == 1 and (layer.op_type, readers[0].op_type) in placement.float_fusions
    return fused or layer.op_type in placement.output_pairs


def coded(int8: Iterable[ir.Node], placement: Placement) -> frozenset[str]:
    """Tensors that codes flow into: out of layers `int8` with an output pair, and on through ops that can take them."""
    flowing = [output for node in int8 if wants_output_pair(node, placement) for output in node.outputs]
    found = {str(value.name) for value in flowing}
    for value in flowing:  # grows on the way
        for reader in value.consumers():
            if reader.outputs[0].name not in found and value in operands(reader) and _passes(reader, placement):
                flowing += reader.outputs
                found.update(str(output.name) for output in reader.outputs)
    return frozenset(found)


def _passes(node: ir.Node, placement: Placement) -> bool:
    """Whether codes may flow through an op that is not a layer."""
    passing = placement.integer | placement.transparent | placement.fused_activations
    return node.op_type in passing and not any(is_constant(value) for value in operands(node))


def behind_activation(value: ir.Value, placement: Placement) -> ir.Value:
    """The output of the activation that alone reads `value` and that the runtime fuses; else `value`."""
    readers = list(value.uses())
    if len(readers) != 1 or value.is_graph_output():
        return value
    reader = readers[0][0]
    return reader.outputs[0] if reader.op_type in placement.fused_activations else value


def feeds_layer(node: ir.Node) -> bool:
    """Whether what `node` gives ever reaches a layer."""
    return any(is_layer(reader) or feeds_layer(reader) for output in node.outputs for reader in output.consumers())


def keeps_codes(node: ir.Node) -> bool:
    """Whether codes of the input are codes of the output: not so where Pad brings in a value of its own."""
    if node.op_type != "Pad" or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    constant = ir.convenience.get_const_tensor(node.inputs[2])
    return constant is not None and not constant.numpy().any()


def activations(value: ir.Value, placement: Placement) -> set[tuple[object, ...]]:
    """The fused activations that the tensors behind `value` come out of, with their bounds; () for none.

    A kernel takes an activation in only where the codes' range ends where the activation's does (ONNX Runtime 1.31:
    zero point 0 for Relu). Tensors out of different activations therefore cannot share qparams.
    """
    node = value.producer()
    if node is None:
        return {()}
    if node.op_type in placement.transparent:
        return {key for source in data_inputs(node) if source is not None for key in activations(source, placement)}
    if node.op_type not in placement.fused_activations:
        return {()}
    bounds = [ir.convenience.get_const_tensor(bound) for bound in node.inputs[1:] if bound is not None]
    return {(node.op_type, *(None if bound is None else float(bound.numpy()) for bound in bounds))}
