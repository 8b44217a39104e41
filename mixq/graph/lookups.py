"""Replaces a lookup that finds the same row everywhere by that row.

Text encoders add a row for the kind of sentence; left alone, torch's exporter gathers it from a table by indices that
are all zero but depend on the input's shape. No runtime folds that: it is looked up at every position in every run.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import add_initializer

# Ops each of whose output's values is a value of the first input.
PICKING = frozenset(
    {"Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)


def replace_constant_lookups(model: ir.Model) -> None:
    """Every Gather of rows of a constant table by indices that all are one known number. Changes `model`."""
    for node in list(model.graph):
        if node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0:
            _replace(model.graph, node)


def the_one_value(value: ir.Value | None) -> float | None:
    """What every element of `value` is, whatever its shape turns out to be; None where they differ or are unknown."""
    if value is None:
        return None
    tensor, node = ir.convenience.get_const_tensor(value), value.producer()
    if tensor is not None:
        found = tensor.numpy()
        return float(found.flat[0]) if found.size and (found == found.flat[0]).all() else None
    return the_one_value(node.inputs[0]) if node is not None and _picks(node) else None


def _picks(node: ir.Node) -> bool:
    return node.op_type in PICKING and node.domain == ""


def _replace(graph: ir.Graph, lookup: ir.Node) -> None:
    table, indices = lookup.inputs
    rows = None if table is None else ir.convenience.get_const_tensor(table)
    index = the_one_value(indices)
    if indices is None or rows is None or index is None or indices.is_initializer() or len(rows.shape) != 2:
        return
    values = rows.numpy()
    if not -len(values) <= index < len(values):
        return  # the runtime says it better
    old, name = lookup.outputs[0], str(lookup.name)
    row = add_initializer(graph, f"{name}.row", values[int(index)])
    width = add_initializer(graph, f"{name}.width", np.array([values.shape[1]], np.int64))
    shape = ir.node("Shape", [indices], name=f"{name}.positions")
    wanted = ir.node("Concat", [shape.outputs[0], width], {"axis": 0}, name=f"{name}.shape")
    spread = ir.node("Expand", [row, wanted.outputs[0]], name=name)
    new = spread.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(lookup, [shape, wanted, spread])
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(lookup, safe=True)
