"""Graph + configuration + parameters → the mixed-precision ONNX model that a runtime executes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mixq.config import MixedPrecisionConfig, Precision
from mixq.graph.edit import nodes_by_name
from mixq.graph.model import Graph
from mixq.graph.plan import Plan
from mixq.graph.products import swap_last
from mixq.graph.quantize import Parameters, give_own, quantize_activations, quantize_weights
from mixq.graph.regions import IR_TYPES, float_types, insert_casts, store_as
from mixq.graph.rewrite import rewrite_on_codes
from mixq.graph.unpaired import write_unpaired


def lower(
    graph: Graph,
    config: MixedPrecisionConfig,
    plan: Plan,
    parameters: Parameters,
    *,
    typed: bool = True,
    trainable: Collection[str] = (),
    types: Mapping[str, Precision] | None = None,
) -> ir.Model:
    """A new model; `graph` stays as it is.

    typed: write the float types into the graph as Casts. False where the runtime reaches the same by an option of
    its own; then only the weights are stored in the type. trainable: INT8 layers that keep float weights behind a
    QuantizeLinear, for training; such a model is not for export. types: of all nodes, as `float_types` has them, where
    `graph` is a part of the graph that `plan` is for, and the part alone would not tell them.
    """
    model = graph.model.clone()
    nodes = nodes_by_name(model.graph)
    for (name, index), value in parameters.values.items():
        give_own(model, nodes[name], index, value)
    if types is None:
        types = float_types(model, config, plan.readers)
    quantize_activations(model, plan, parameters.activations)
    quantize_weights(model, graph, plan, parameters, trainable)
    write_unpaired(model, graph, config, parameters, plan.placement.forms)
    if not trainable:
        rewrite_on_codes(model, plan.rewritten)
    if typed:
        insert_casts(model, types)
    else:
        _store_weights(model, config)
    if plan.placement.products_swap:
        swap_last(model)
    RemoveUnusedNodesPass()(model)
    return model


def _store_weights(model: ir.Model, config: MixedPrecisionConfig) -> None:
    for node in list(model.graph):  # in order: the Cast of a weight that layers share stands before the first of them
        scheme = config.schemes.get(str(node.name))
        if scheme is not None and scheme.precision in (Precision.FP16, Precision.BF16):
            store_as(model, node, IR_TYPES[scheme.precision])
