"""Which nodes are layers, and their table: names, shapes, parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.task import Inputs

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SCOPES = "pkg.torch.onnx.name_scopes"


def find_layers(model: ir.Model, example: Inputs) -> tuple[Layer, ...]:
    """The layers of `model` in graph order; their nodes are renamed to the layers' names.

    `example` holds one row of every input: from it come the shapes. Raises InputError where there is no layer.
    """
    nodes = [node for node in model.graph if is_layer(node)]
    if not nodes:
        raise InputError(f"the model has no layer to quantize: no {', '.join(LAYER_OPS)} with a constant weight")
    names = _names(nodes)
    for node in model.graph:
        node.name = f"{node.name}_" if node.name in names else node.name
    for node, name in zip(nodes, names, strict=True):
        node.name = name
    shapes = row_shapes(model, example)
    return tuple(_layer(node, shapes) for node in nodes)


def is_layer(node: ir.Node) -> bool:
    """A Conv, ConvTranspose, Gemm or MatMul whose second input, and it alone, is a constant float weight.

    A MatMul's weight has two axes: with more, neither runtime has an integer kernel that gives the right values.
    """
    if node.op_type not in LAYER_OPS or node.domain not in ("", "ai.onnx"):
        return False
    first, second = node.inputs[0], node.inputs[1]
    if first is None or second is None or first.is_initializer() or not second.is_initializer():
        return False
    weight = second.const_value
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return False
    return len(weight.shape) == 2 if node.op_type == "MatMul" else len(weight.shape) >= 2


def channel_axis(node: ir.Node) -> int:
    """The axis of the weight along which the output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "ConvTranspose":
        return 1
    return len(weight_of(node).shape) - 1


def attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def weight_of(node: ir.Node) -> ir.TensorProtocol:
    """The constant weight of a layer."""
    value = node.inputs[1]
    if value is None or value.const_value is None:
        raise ValueError(f"{node.name} has no weight")
    return value.const_value


def _names(nodes: list[ir.Node]) -> list[str]:
    """Unique names; a module called several times gives name, name#2, name#3 …"""
    seen: Counter[str] = Counter()
    names = []
    for node in nodes:
        name = _name(node)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names


def _name(node: ir.Node) -> str:
    """The torch module path where the exporter left one, else the node's own name."""
    scopes = node.metadata_props.get(SCOPES)
    if scopes is None:
        return node.name or str(node.outputs[0].name)
    weight = node.inputs[1]
    name = str(weight.name) if weight is not None else ""
    # A folded batch norm leaves its own path on the node, but not on the weight; a tied weight has one user's name.
    if name.endswith(".weight") and weight is not None and len(weight.consumers()) == 1:
        return name.removesuffix(".weight")
    path = [part for part in scopes.strip("[]").replace("'", "").replace('"', "").split(", ") if part]
    return path[-2] if len(path) > 1 else str(node.name)


def row_shapes(model: ir.Model, example: Inputs) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of all tensors for one row, by ONNX shape inference."""
    copy = model.clone()
    for node in copy.graph:
        for output in node.outputs:
            output.shape = None
    for value in copy.graph.inputs:
        value.shape = ir.Shape((1, *example[str(value.name)].shape[1:]))
    ShapeInferencePass(strict_mode=False, data_prop=True)(copy)
    known = {}
    for node in copy.graph:
        for value in (v for v in (*node.inputs, *node.outputs) if v is not None):
            if value.shape is not None:
                known[str(value.name)] = tuple(d if isinstance(d, int) else 1 for d in value.shape)
    return known


def _layer(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> Layer:
    data, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if data is None or weight is None:
        raise ValueError(f"{node.name} lacks an input")
    bias = _bias(node)
    weight_shape = weight_of(node).numpy().shape
    input_shape, output_shape = shapes.get(str(data.name), ()), shapes.get(str(output.name), ())
    return Layer(
        name=str(node.name),
        op=node.op_type,
        weight=str(weight.name),
        bias=None if bias is None else str(bias.name),
        channel_axis=channel_axis(node),
        input=str(data.name),
        output=str(output.name),
        input_shape=input_shape,
        weight_shape=weight_shape,
        output_shape=output_shape,
        parameters=math.prod(weight_shape) + (_size(bias) if bias is not None else 0),
        macs=_macs(node.op_type, input_shape, weight_shape, output_shape),
    )


def _bias(node: ir.Node) -> ir.Value | None:
    """A constant with one value a channel, as integer kernels take it; Gemm's third input may be anything else."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or node.op_type != "Gemm":
        return value
    shape = None if value.const_value is None else value.const_value.numpy().shape
    return value if shape == (weight_of(node).numpy().shape[channel_axis(node)],) else None


def _size(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0


def _macs(op: str, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates for one row: every weight element is used once an output (or input) position."""
    if op == "Conv":
        return math.prod(output_shape[2:]) * math.prod(weight_shape)
    if op == "ConvTranspose":
        return math.prod(input_shape[2:]) * math.prod(weight_shape)
    return math.prod(output_shape[1:-1]) * math.prod(weight_shape)
