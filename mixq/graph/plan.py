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
from mixq.graph.readers import behind_activation, data_inputs, operands
from mixq.graph.sweep import Edge, Sweep


@dataclass(frozen=True, slots=True)
class Plan:
    """Where codes are made and who reads them.

    groups: tensors that share qparams; reads: for each quantized tensor the edges that read its codes; inputs: for
    each INT8 layer, by activation that it multiplies, a quantized tensor whose qparams that has; outputs: the quantized
    tensors that the graph gives out as their codes' values; rewritten: nodes to be written in the form that the runtime
    has integer kernels for; signed: quantized tensors that are s8 with the zero point 0 where they have negative
    values; placement: what it was made by.
    """

    groups: tuple[tuple[str, ...], ...]
    reads: dict[str, tuple[Edge, ...]]
    inputs: dict[str, tuple[str, ...]]
    outputs: frozenset[str] = frozenset()
    rewritten: frozenset[str] = frozenset()
    signed: frozenset[str] = frozenset()
    placement: Placement = field(default_factory=Placement)

    @property
    def tensors(self) -> list[str]:
        return list(self.reads)

    @property
    def readers(self) -> frozenset[str]:
        """The nodes that read codes."""
        return frozenset(name for edges in self.reads.values() for name, _ in edges)


def make_plan(graph: Graph, int8: Collection[str], placement: Placement) -> Plan:
    """The plan for a graph whose layers `int8` have static INT8 activations."""
    joined: frozenset[str] = frozenset()
    while True:
        sweep = Sweep(graph.nodes, frozenset(int8), placement, joined)
        more = sweep.joinable()
        if not more:
            reads = {tensor: tuple(edges) for tensor, edges in sweep.reads.items()}
            signed = _signed(sweep, graph, int8, placement)
            outputs, rewritten = frozenset(sweep.outputs), frozenset(sweep.rewritten)
            return Plan(sweep.groups(), reads, sweep.inputs, outputs, rewritten, signed, placement)
        joined |= more


def _signed(sweep: Sweep, graph: Graph, int8: Collection[str], placement: Placement) -> frozenset[str]:
    """All tensors that share qparams with the input of a layer whose integer kernel takes no zero point."""
    layers = [name for name in int8 if graph.by_name[name].op in placement.no_zero_point]
    inputs = {tensor for name in layers for tensor in sweep.inputs[name]}
    return frozenset(tensor for group in sweep.groups() if inputs & set(group) for tensor in group)


def candidates(graph: Graph, placement: Placement) -> list[str]:
    """Every tensor that some configuration may quantize: what calibration observes."""
    wanted: dict[str, None] = {}
    for name in graph.computing_names:
        wanted |= dict.fromkeys(make_plan(graph, [name], placement).tensors)
        wanted |= dict.fromkeys(graph.by_name[name].operands.values())
    wanted |= dict.fromkeys(make_plan(graph, graph.computing_names, placement).tensors)
    for node in graph.nodes.values():
        wanted |= dict.fromkeys(_demanded(node, placement))
    return list(wanted)


def _demanded(node: ir.Node, placement: Placement) -> list[str]:
    """Tensors around a node that is not a layer which only some mixes of layers quantize."""
    wanted: list[ir.Value | None] = []
    if node.op_type in placement.integer:
        wanted += [*operands(node), behind_activation(node.outputs[0], placement)]
    if node.op_type in placement.transparent:
        wanted += data_inputs(node)
    floats = [value for value in wanted if value is not None and not value.is_initializer()]
    return [str(value.name) for value in floats if value.dtype in (None, ir.DataType.FLOAT)]
