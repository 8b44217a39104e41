"""Float regions: which float type every node has, and Casts at the borders of regions only.

A layer has the type that the configuration gives it, and so has what adds its bias or scales its output by a constant:
a kernel takes that in. The other ops between layers take the type that most of their neighbors have, so that a region
has no cast inside; where that is undecided, the configuration's `rest`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from mixq.config import MixedPrecisionConfig, Precision
from mixq.graph.edit import add_initializer, insert_behind, replace_output

IR_TYPES = {
    Precision.FP32: ir.DataType.FLOAT,
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}

# The largest finite value.
LARGEST = {ir.DataType.FLOAT: 3.4028234e38, ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895313e38}

# Ops with an input that ONNX wants in float32 whatever the data's type is, and ops that make no float data.
FLOAT32_ONLY = frozenset(
    {"Resize", "Range", "Shape", "ConstantOfShape", "Cast", "QuantizeLinear", "DequantizeLinear", "CumSum", "Size"}
)

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


def float_types(model: ir.Model, config: MixedPrecisionConfig, on_codes: Collection[str] = ()) -> dict[str, Precision]:
    """Node name → float type. INT8 layers, and the nodes `on_codes` that read codes, are FP32: what a pair gives."""
    fixed: dict[str, Precision] = {
        name: Precision.FP32 if scheme.precision is Precision.INT8 else scheme.precision
        for name, scheme in config.schemes.items()
    }
    names = [str(node.name) for node in model.graph]
    for node in model.graph:  # in order, so that a chain behind a layer follows it
        producer = _before_constant(node)
        if producer is not None and str(producer.name) in fixed:
            fixed[str(node.name)] = fixed[str(producer.name)]
    fixed |= {str(node.name): Precision.FP32 for node in model.graph if node.op_type in FLOAT32_ONLY}
    fixed |= dict.fromkeys(on_codes, Precision.FP32)
    if {config.rest, *fixed.values()} == {Precision.FP32}:
        return dict.fromkeys(names, Precision.FP32)
    types: dict[str, Precision] = {name: fixed.get(name, config.rest) for name in names}
    starts = dict.fromkeys((config.rest, *fixed.values()))
    for island in _islands([node for node in model.graph if node.name not in fixed]):
        _settle(island, types, list(starts))
    return types


def _before_constant(node: ir.Node) -> ir.Node | None:
    """What writes the other operand of `node`, where that is arithmetic with a constant.

    Beside INT8 layers OpenVINO (2026.4) fuses a cast with such a node behind it, and then may find no types for the
    attention that reads it.
    """
    variable = [value for value in node.inputs if value is not None and value.const_value is None]
    return variable[0].producer() if node.op_type in ARITHMETIC and len(variable) == 1 else None


def _islands(movable: list[ir.Node]) -> list[list[ir.Node]]:
    """`movable` in parts that no float tensor connects, each in the graph's order."""
    left, order, islands = set(movable), {node: index for index, node in enumerate(movable)}, []
    for node in movable:
        found = [node] if node in left else []
        left.discard(node)
        for member in found:  # grows on the way
            near = [neighbor for neighbor in dict.fromkeys(_neighbors(member)) if neighbor in left]
            left.difference_update(near)
            found += near
        if found:
            islands.append(sorted(found, key=order.__getitem__))
    return islands


def _settle(island: list[ir.Node], types: dict[str, Precision], starts: list[Precision]) -> None:
    """Types with few casts: from each start, nodes follow their neighbors; the first that ends in fewest is taken."""
    best: dict[str, Precision] = {}
    fewest = None
    for start in starts:
        types.update((str(node.name), start) for node in island)
        while sum(_follow_neighbors(node, types) for node in island):  # each change removes a cast, so this ends
            pass
        casts = sum(types[str(node.name)] != types[str(other.name)] for node in island for other in _neighbors(node))
        if fewest is None or casts < fewest:
            fewest, best = casts, {str(node.name): types[str(node.name)] for node in island}
    types |= best


def _follow_neighbors(node: ir.Node, types: dict[str, Precision]) -> bool:
    votes = Counter(types[str(neighbor.name)] for neighbor in _neighbors(node))
    if not votes:
        return False
    (best, count), name = votes.most_common(1)[0], str(node.name)
    if count <= votes[types[name]]:
        return False
    types[name] = best
    return True


def _neighbors(node: ir.Node) -> list[ir.Node]:
    """The nodes that `node` shares float tensors with."""
    producers = [value.producer() for value in node.inputs if value is not None and is_float(value)]
    readers = [reader for output in node.outputs if is_float(output) for reader in output.consumers()]
    return [neighbor for neighbor in (*producers, *readers) if neighbor is not None]


def insert_casts(model: ir.Model, types: Mapping[str, Precision]) -> None:
    """Give every node of `types` its float type: constants converted, Casts where a value crosses into another type."""
    original = list(model.graph)
    for node in original:
        target = IR_TYPES[types.get(str(node.name), Precision.FP32)]
        for index, value in enumerate(list(node.inputs)):
            if value is None or not is_float(value):
                continue
            if value.is_initializer():
                if target != ir.DataType.FLOAT:
                    node.replace_input_with(index, _typed_constant(model.graph, value, target))
            elif _type_of(value, types) != target:
                node.replace_input_with(index, _cast(model.graph, value, target))
    for node in original:
        _retype_outputs(model.graph, node, types)


def store_as(model: ir.Model, node: ir.Node, dtype: ir.DataType) -> None:
    """Keep the weight and bias of `node` in `dtype` on disk and in float32 in the arithmetic that is written down."""
    for index, value in enumerate(list(node.inputs)):
        if value is not None and value.is_initializer() and is_float(value):
            stored = _typed_constant(model.graph, value, dtype)
            node.replace_input_with(index, _cast(model.graph, stored, ir.DataType.FLOAT, before=node))


def is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _type_of(value: ir.Value, types: Mapping[str, Precision]) -> ir.DataType:
    producer = value.producer()
    if producer is None:
        return ir.DataType.FLOAT
    if producer.op_type == "Cast":
        return value.dtype or ir.DataType.FLOAT
    return IR_TYPES[types.get(str(producer.name), Precision.FP32)]


def _typed_constant(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    numbers, limit = value.const_value.numpy(), LARGEST[dtype]
    finite = np.where(
        np.isfinite(numbers), np.clip(numbers, -limit, limit), numbers
    )  # a mask of -1e9 is not to be -inf
    return add_initializer(graph, f"{value.name}_{dtype.name.lower()}", finite.astype(dtype.numpy()), dtype)


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node | None = None) -> ir.Value:
    name = f"{value.name}_as_{dtype.name.lower()}"
    for reader in value.consumers():
        if reader.name == name:
            return reader.outputs[0]
    node = ir.node("Cast", [value], {"to": dtype.value}, name=name)
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, value.shape, ir.TensorType(dtype)
    if before is not None:
        graph.insert_before(before, [node])
    else:
        insert_behind(graph, value, [node])
    return node.outputs[0]


def _retype_outputs(graph: ir.Graph, node: ir.Node, types: Mapping[str, Precision]) -> None:
    target = IR_TYPES[types.get(str(node.name), Precision.FP32)]
    if target == ir.DataType.FLOAT:
        return
    for output in node.outputs:
        if is_float(output):
            if output.is_graph_output():
                replace_output(graph, output, _cast(graph, output, ir.DataType.FLOAT))
            output.type = ir.TensorType(target)
