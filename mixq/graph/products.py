"""Writes the products of attention so that a runtime takes the layout changes around them in."""

from __future__ import annotations

import onnx_ir as ir

from mixq.graph.layers import is_product


def swap_last(model: ir.Model) -> None:
    """Let the transposition of a product's second operand end in a swap of the last two axes, an op of its own.

    That swap is a way of reading in a product (OpenVINO 2026.4 fuses it), what stands before it keeps rows together.
    torch's exporter makes one op of both, which is then carried out. Changes `model`, not what it computes.
    """
    for node in [node for node in model.graph if is_product(node)]:
        turn = node.inputs[1].producer() if node.inputs[1] is not None else None
        if turn is not None and turn.op_type == "Transpose" and len(list(turn.outputs[0].uses())) == 1:
            _split(model.graph, node, turn)


def _split(graph: ir.Graph, product: ir.Node, turn: ir.Node) -> None:
    order, old = list(turn.attributes.get_ints("perm", [])), turn.outputs[0]
    rank = len(order)
    if old.is_graph_output() or rank < 3 or order[-2] != rank - 1 or order[:-2] == list(range(rank - 2)):
        return
    before = [*order[:-2], order[-1], order[-2]]
    name, shape = str(turn.name), None if old.shape is None else list(old.shape)
    first = ir.node("Transpose", [turn.inputs[0]], {"perm": before}, name=name)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    second = ir.node("Transpose", [first.outputs[0]], {"perm": swap}, name=f"{name}_swap")
    middle, new = first.outputs[0], second.outputs[0]
    middle.name, middle.type = f"{old.name}_before_swap", old.type
    middle.shape = None if shape is None else ir.Shape([*shape[:-2], shape[-1], shape[-2]])
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(turn, [first, second])
    product.replace_input_with(1, new)
    graph.remove(turn, safe=True)
