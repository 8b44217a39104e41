"""Which nodes are layers, and their table: names, shapes, parameters, multiply-accumulates, bytes.

A layer has a constant weight (Conv, ConvTranspose, Gemm, MatMul; Gather, an embedding), or multiplies two activations.
"""

from __future__ import annotations

import math
from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.task import Inputs

MATRIX_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DOMAINS = ("", "ai.onnx")
SCOPES = "pkg.torch.onnx.name_scopes"


def find_layers(model: ir.Model, example: Inputs) -> tuple[Layer, ...]:
    """The layers of `model` in graph order; their nodes are renamed to the layers' names.

    `example` holds one row of every input: from it come the shapes. Raises InputError where there is no layer.
    """
    nodes = [node for node in model.graph if is_layer(node)]
    if not nodes:
        raise InputError(f"the model has no layer to quantize: no {', '.join(MATRIX_OPS)} with a constant weight")
    names = _names(nodes)
    for node in model.graph:
        node.name = f"{node.name}_" if node.name in names else node.name
    for node, name in zip(nodes, names, strict=True):
        node.name = name
    shapes = row_shapes(model, example)
    return tuple(_layer(node, shapes) for node in nodes)


def is_layer(node: ir.Node) -> bool:
    """Whether the node is any of the layers that there are."""
    return is_matrix(node) or is_product(node) or is_embedding(node)


def is_matrix(node: ir.Node) -> bool:
    """A Conv, ConvTranspose, Gemm or MatMul whose second input, and it alone, is a constant float weight.

    A MatMul's weight has two axes: with more, neither runtime has an integer kernel that gives the right values.
    """
    if node.op_type not in MATRIX_OPS or node.domain not in DOMAINS or _is_constant(node, 0):
        return False
    axes = _constant_axes(node, 1)
    return axes == 2 if node.op_type == "MatMul" else axes >= 2


def is_product(node: ir.Node) -> bool:
    """A MatMul of two float activations, as in attention."""
    if node.op_type != "MatMul" or node.domain not in DOMAINS:
        return False
    return not any(_is_constant(node, index) or not _is_float(node, index) for index in (0, 1))


def is_embedding(node: ir.Node) -> bool:
    """A Gather of rows of a constant float table with two axes, at indices that the inputs' values decide.

    Positions depend on the inputs' shape alone: runtimes look them up once, when they compile for a shape.
    """
    rows = node.op_type == "Gather" and node.domain in DOMAINS and attribute(node, "axis", 0) == 0
    return rows and _constant_axes(node, 0) == 2 and _depends_on_input(node.inputs[1])


def _depends_on_input(value: ir.Value | None) -> bool:
    """Whether the value, and not only the shape, of an input of the graph goes into `value`."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if value.is_graph_input():
            return True
        node = value.producer()
        if node is not None and node.op_type not in ("Shape", "Size"):
            left += node.inputs
    return False


def _is_constant(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    return value is None or value.is_initializer()


def _is_float(node: ir.Node, index: int) -> bool:
    value = node.inputs[index]
    return value is not None and value.dtype in (None, ir.DataType.FLOAT)


def _constant_axes(node: ir.Node, index: int) -> int:
    """The number of axes of a constant float input; 0 where it is none."""
    value = node.inputs[index]
    weight = value.const_value if value is not None and value.is_initializer() else None
    return 0 if weight is None or weight.dtype != ir.DataType.FLOAT else len(weight.shape)


RECURRENT = ("LSTM", "GRU", "RNN")


def float_only(model: ir.Model) -> dict[str, int]:
    """Ops with weights that are no layers, and how many: no configuration quantizes them."""
    return dict(Counter(node.op_type for node in model.graph if node.op_type in RECURRENT))


def channel_axis(node: ir.Node) -> int:
    """The axis of the weight along which the output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def attribute(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant that the layer's parameters are; None where it has none."""
    if is_product(node):
        return None
    return node.inputs[0 if node.op_type == "Gather" else 1]


def constant_shape(value: ir.Value) -> tuple[int, ...]:
    """Of a constant."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    return tuple(value.const_value.numpy().shape)


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
    weight = weight_of(node)
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
    first, second, output = node.inputs[0], node.inputs[1], node.outputs[0]
    if first is None or second is None:
        raise ValueError(f"{node.name} lacks an input")
    data, weight = (second if node.op_type == "Gather" else first), weight_of(node)
    place = bias_place(node) if is_matrix(node) else None
    bias = None if place is None else place[0].inputs[place[1]]
    weight_shape = shapes.get(str(second.name), ()) if weight is None else constant_shape(weight)
    input_shape, output_shape = shapes.get(str(data.name), ()), shapes.get(str(output.name), ())
    size = 0 if weight is None else math.prod(weight_shape)
    return Layer(
        name=str(node.name),
        op=node.op_type,
        weight=None if weight is None else str(weight.name),
        bias=None if bias is None else str(bias.name),
        channel_axis=channel_axis(node),
        input=str(data.name),
        output=str(output.name),
        input_shape=input_shape,
        weight_shape=weight_shape,
        output_shape=output_shape,
        parameters=size + (_size(bias) if bias is not None else 0),
        macs=_macs(node, input_shape, weight_shape, output_shape),
        other=str(second.name) if weight is None else None,
        groups=attribute(node, "group", 1),
        strides=tuple(node.attributes.get_ints("strides", [1] * (len(weight_shape) - 2))),
    )


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Which node reads the bias of a layer with a matrix, and at which input; None where it has none.

    A bias is a constant with one value a channel. A MatMul's is what the Add adds that alone reads it.
    """
    if node.op_type != "MatMul":
        return (node, 2) if len(node.inputs) > 2 and _is_bias(node, node.inputs[2]) else None
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or readers[0][0].op_type != "Add" or node.outputs[0].is_graph_output():
        return None
    reader, index = readers[0]
    other = 1 - index
    return (reader, other) if _is_bias(node, reader.inputs[other]) else None


def _is_bias(node: ir.Node, value: ir.Value | None) -> bool:
    if value is None:
        return False
    if node.op_type in ("Conv", "ConvTranspose"):
        return True
    weight = node.inputs[1]
    if value.const_value is None or weight is None or weight.const_value is None:
        return False
    return constant_shape(value) == (constant_shape(weight)[channel_axis(node)],)


def _size(value: ir.Value) -> int:
    return value.const_value.size if value.const_value is not None else 0


def _macs(
    node: ir.Node, input_shape: tuple[int, ...], weight_shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> int:
    """Multiply-accumulates for one row: every weight element is used once an output (or input) position."""
    op = node.op_type
    if op == "Gather":
        return 0
    if is_product(node):
        return math.prod(output_shape[1:]) * math.prod(input_shape[-1:])
    if op == "Conv":
        return math.prod(output_shape[2:]) * math.prod(weight_shape)
    if op == "ConvTranspose":
        return math.prod(input_shape[2:]) * math.prod(weight_shape)
    return math.prod(output_shape[1:-1]) * math.prod(weight_shape)
