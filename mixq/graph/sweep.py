"""One sweep of placing pairs, for a given set of ops that are not layers and run on codes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mixq.graph.layers import is_layer, is_product
from mixq.graph.placement import Placement
from mixq.graph.readers import (
    activations,
    behind_activation,
    coded,
    data_inputs,
    feeds_layer,
    is_constant,
    keeps_codes,
    layer_operands,
    operands,
    wants_output_pair,
)

Edge = tuple[str, int]
"""(node name, input index)."""


class Sweep:
    """reads, inputs, outputs and rewritten as in `Plan`, for the layers `int8` and the other ops `joined` on codes.

    nodes: of the graph by name, in order.
    More ops may be able to join once these have: sweeps are repeated, from the start since each op that takes codes
    lets pairs move further up, until none can.
    """

    def __init__(
        self, nodes: Mapping[str, ir.Node], int8: frozenset[str], placement: Placement, joined: frozenset[str]
    ) -> None:
        self._nodes, self._int8, self._placement, self._joined = nodes, int8, placement, joined
        self._shared: dict[str, str] = {}  # union-find over tensors that share qparams
        layers = [node for name, node in nodes.items() if name in int8]
        self._coded = coded(layers, placement)
        self._moving: dict[ir.Node, bool] = {}
        self.reads: dict[str, dict[Edge, None]] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.outputs: set[str] = set()
        self.rewritten: set[str] = set()
        for node in layers:
            self._quantize_inputs(node)
        for node in layers:
            if wants_output_pair(node, placement):
                self._quantize_output(node)
        for name, node in nodes.items():
            if name in joined:
                self._join(node)

    def joinable(self) -> frozenset[str]:
        """Ops with an integer form whose output is quantized or small, and whose inputs are or may be quantized."""
        return frozenset(
            name
            for name, node in self._nodes.items()
            if node.op_type in self._placement.integer
            and name not in self._joined
            and (
                behind_activation(node.outputs[0], self._placement).name in self.reads
                or (node.op_type in self._placement.shrinking and not feeds_layer(node))
            )
            and self._may_read_codes(node)
        )

    def _may_read_codes(self, node: ir.Node) -> bool:
        values = [value for value in operands(node) if not is_constant(value)]
        if self._placement.all_inputs:
            return len(values) == len(operands(node)) and any(v is not None and v.name in self._coded for v in values)
        return self._all_from_codes(node) or any(v is not None and v.name in self.reads for v in values)

    def _all_from_codes(self, node: ir.Node) -> bool:
        """Whether every operand is quantized or may well be."""
        return all(value is not None and self._may_be_codes(value) for value in operands(node))

    def _may_be_codes(self, value: ir.Value) -> bool:
        """Whether `value` is quantized, or an INT8 layer can write it as codes, or a transparent op hands on such."""
        node = value.producer()
        if value.name in self.reads or _name(node) in self._int8:
            return True
        if node is None:
            return False
        hands_on = node.op_type in self._placement.transparent and keeps_codes(node)
        computes = node.op_type in self._placement.integer | self._placement.fused_activations
        sources = data_inputs(node) if hands_on else operands(node)
        return (hands_on or computes) and all(source is not None and self._may_be_codes(source) for source in sources)

    def groups(self) -> tuple[tuple[str, ...], ...]:
        groups: dict[str, list[str]] = {}
        for tensor in self.reads:
            groups.setdefault(self._leader(tensor), []).append(tensor)
        return tuple(tuple(group) for group in groups.values())

    def _quantize_inputs(self, node: ir.Node) -> None:
        found = [
            self._quantize(value, (str(node.name), index))
            for index, value in enumerate(layer_operands(node))
            if value is not None
        ]
        self.inputs[str(node.name)] = tuple(found)

    def _quantize_output(self, node: ir.Node) -> None:
        """A pair that everyone reads behind: with a float reader left, the kernel would stay float."""
        value = behind_activation(node.outputs[0], self._placement)
        self._note(value)
        for reader, index in value.uses():
            self._note(value, (str(reader.name), index))
        if value.is_graph_output():
            self.outputs.add(str(value.name))

    def _join(self, node: ir.Node) -> None:
        whole = self._all_from_codes(node)
        for index, value in enumerate(operands(node)):
            if value is None:
                continue
            if self._placement.all_inputs or whole:
                self._quantize(value, (str(node.name), index))
            elif value.name in self.reads:
                self._note(value, (str(node.name), index))
        if self._placement.all_inputs:
            self._quantize_output(node)
        if node.op_type in self._placement.rewritten:
            self.rewritten.add(str(node.name))

    def _quantize(self, value: ir.Value, edge: Edge) -> str:
        """Let `edge` read codes of `value`, made as early as they can be; a tensor that has its qparams."""
        node = value.producer()
        if node is None or not self._moves_up(node):
            self._note(value, edge)
            return str(value.name)
        if self._placement.pair_after_transparent:
            self._note(value, edge)
        if node.op_type in self._placement.rewritten:
            self.rewritten.add(str(node.name))
        roots = [
            self._quantize(source, (str(node.name), index))
            for index, source in enumerate(data_inputs(node))
            if source is not None
        ]
        for name in (str(value.name), *roots):
            self._share(name, roots[0])
        return roots[0]

    def _moves_up(self, node: ir.Node) -> bool:
        """Whether `node` hands codes on. Asked along every path, so kept."""
        if node not in self._moving:
            self._moving[node] = self._hands_codes_on(node)
        return self._moving[node]

    def _hands_codes_on(self, node: ir.Node) -> bool:
        return (
            node.op_type in self._placement.transparent
            and keeps_codes(node)
            and not any(is_constant(value) for value in data_inputs(node))
            and not (self._placement.products_transpose and self._out_of_float_product(node))
            and (not self._placement.up_to_codes or node.outputs[0].name in self._coded)
            and not any(output.is_graph_output() for output in node.outputs)
            and all(self._content(output) for output in node.outputs)
            and (not self._placement.output_pairs or len(activations(node.outputs[0], self._placement)) == 1)
        )

    def _out_of_float_product(self, node: ir.Node) -> bool:
        """Whether only transparent ops stand between `node` and a product of activations that is not INT8."""
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None:
            return False
        if source.op_type in self._placement.transparent:
            return self._out_of_float_product(source)
        return is_layer(source) and is_product(source) and source.name not in self._int8

    def _content(self, value: ir.Value) -> bool:
        """Whether every reader of `value` takes codes."""
        return all(self._takes_codes(node, index) for node, index in value.uses()) and bool(list(value.uses()))

    def _takes_codes(self, node: ir.Node, index: int) -> bool:
        if node.name in self._int8:
            return index < len(layer_operands(node))
        if node.name in self._joined:
            return True
        return self._moves_up(node)

    def _note(self, value: ir.Value, edge: Edge | None = None) -> None:
        edges = self.reads.setdefault(str(value.name), {})
        if edge is not None:
            edges[edge] = None

    def _share(self, left: str, right: str) -> None:
        self._shared[self._leader(left)] = self._leader(right)

    def _leader(self, tensor: str) -> str:
        while self._shared.get(tensor, tensor) != tensor:
            tensor = self._shared[tensor]
        return tensor


def _name(node: ir.Node | None) -> str | None:
    return None if node is None else node.name
