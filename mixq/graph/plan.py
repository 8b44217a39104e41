"""Where the QuantizeLinear/DequantizeLinear pairs of a configuration stand: tensors are quantized, not edges.

1. The input of each INT8 layer is followed up through transparent ops (`Placement`) as far as every reader on the
   way is content with codes; the tensor reached is the *root*, quantized once. Branches of one Concat share qparams.
2. A runtime may ask for pairs on the outputs of layers too (`output_pairs`).
3. An op with an integer form (a residual Add) reads codes where its own output is quantized.
Everything else reads the float tensor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx_ir as ir

from mixq.graph.model import Graph
from mixq.graph.placement import Placement

Edge = tuple[str, int]
"""(node name, input index)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where codes are made and who reads them.

    groups: tensors that share qparams; reads: for each quantized tensor the edges that read its codes; inputs: for
    each INT8 layer a quantized tensor whose qparams its input has.
    """

    groups: tuple[tuple[str, ...], ...]
    reads: dict[str, tuple[Edge, ...]]
    inputs: dict[str, str]

    @property
    def tensors(self) -> list[str]:
        return list(self.reads)


def make_plan(graph: Graph, int8: Collection[str], placement: Placement) -> Plan:
    """The plan for a graph whose layers `int8` have static INT8 activations."""
    return _Planner(graph.model, frozenset(int8), placement).plan()


def candidates(graph: Graph, placement: Placement) -> list[str]:
    """Every tensor that some configuration may quantize: what calibration observes."""
    wanted: dict[str, None] = {}
    for layer in graph.layers:
        for name in make_plan(graph, [layer.name], placement).tensors:
            wanted[name] = None
        wanted[layer.input] = None
    for name in make_plan(graph, graph.layer_names, placement).tensors:
        wanted[name] = None
    return list(wanted)


@dataclass
class _Planner:
    model: ir.Model
    int8: frozenset[str]
    placement: Placement
    shared: dict[str, str] = field(default_factory=dict)  # union-find over tensors that share qparams
    reads: dict[str, dict[Edge, None]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    def plan(self) -> Plan:
        layers = [node for node in self.model.graph if node.name in self.int8]
        for node in layers:
            self._quantize_input(node)
        for node in layers:
            if node.op_type in self.placement.output_pairs:
                self._quantize_output(node)
        while self._join_integer_ops():
            pass
        return Plan(self._groups(), {tensor: tuple(edges) for tensor, edges in self.reads.items()}, self.inputs)

    def _quantize_input(self, node: ir.Node) -> None:
        value = node.inputs[0]
        if value is not None:
            self.inputs[str(node.name)] = self._quantize(value, (str(node.name), 0))

    def _quantize_output(self, node: ir.Node) -> None:
        """A pair that everyone reads behind: with a float reader left, the kernel would stay float."""
        value = self._behind_activation(node.outputs[0])
        self._note(value)
        for reader, index in value.uses():
            self._note(value, (str(reader.name), index))

    def _quantize(self, value: ir.Value, edge: Edge) -> str:
        """Let `edge` read codes of `value`, made as early as they can be; a tensor that has its qparams."""
        node = value.producer()
        if node is None or not self._moves_up(node):
            self._note(value, edge)
            return str(value.name)
        if self.placement.pair_after_transparent:
            self._note(value, edge)
        roots = [
            self._quantize(source, (str(node.name), index))
            for index, source in enumerate(self._data_inputs(node))
            if source is not None
        ]
        for name in (str(value.name), *roots):
            self._share(name, roots[0])
        return roots[0]

    def _moves_up(self, node: ir.Node) -> bool:
        inputs = self._data_inputs(node)
        constant = any(value is None or value.is_initializer() for value in inputs)
        quiet = not any(output.is_graph_output() for output in node.outputs)
        return (
            node.op_type in self.placement.transparent
            and not constant
            and quiet
            and all(self._content(output) for output in node.outputs)
        )

    def _content(self, value: ir.Value) -> bool:
        """Whether every reader of `value` takes codes."""
        return all(self._takes_codes(node, index) for node, index in value.uses()) and bool(list(value.uses()))

    def _takes_codes(self, node: ir.Node, index: int) -> bool:
        if node.name in self.int8:
            return index == 0
        return node.op_type in self.placement.transparent and all(self._content(output) for output in node.outputs)

    def _data_inputs(self, node: ir.Node) -> list[ir.Value | None]:
        return list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]

    def _behind_activation(self, value: ir.Value) -> ir.Value:
        readers = list(value.uses())
        if len(readers) == 1 and readers[0][0].op_type in self.placement.fused_activations:
            return readers[0][0].outputs[0]
        return value

    def _join_integer_ops(self) -> bool:
        """One sweep over the ops with an integer form; whether it changed anything."""
        before = sum(len(edges) for edges in self.reads.values())
        for node in self.model.graph:
            if node.op_type in self.placement.integer and self._runs_on_codes(node):
                for index, value in enumerate(node.inputs):
                    if value is not None and value.name in self.reads:
                        self.reads[str(value.name)][str(node.name), index] = None
        return sum(len(edges) for edges in self.reads.values()) != before

    def _runs_on_codes(self, node: ir.Node) -> bool:
        output = self._behind_activation(node.outputs[0])
        inputs = [value for value in node.inputs if value is not None]
        quantized = [value.name in self.reads for value in inputs]
        return output.name in self.reads and (all(quantized) if self.placement.all_inputs else any(quantized))

    def _note(self, value: ir.Value, edge: Edge | None = None) -> None:
        edges = self.reads.setdefault(str(value.name), {})
        if edge is not None:
            edges[edge] = None

    def _share(self, left: str, right: str) -> None:
        self.shared[self._leader(left)] = self._leader(right)

    def _leader(self, tensor: str) -> str:
        while self.shared.get(tensor, tensor) != tensor:
            tensor = self.shared[tensor]
        return tensor

    def _groups(self) -> tuple[tuple[str, ...], ...]:
        groups: dict[str, list[str]] = {}
        for tensor in self.reads:
            groups.setdefault(self._leader(tensor), []).append(tensor)
        return tuple(tuple(group) for group in groups.values())
