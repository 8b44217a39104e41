"""Brings any ONNX model to the one form that the rest of mixq knows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
import onnxscript.version_converter
from onnx_ir.passes.common import (
    CheckerPass,
    ClearMetadataAndDocStringPass,
    LiftConstantsToInitializersPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
)

from mixq.errors import InputError, first_line
from mixq.graph.biases import add_missing_biases
from mixq.graph.lookups import replace_constant_lookups
from mixq.graph.pads import make_pads_explicit
from mixq.graph.pooling import mean_to_global_average_pool

OPSET = 21  # the newest that both runtimes take without reservations
IR_VERSION = 10
OLDEST_OPSET = 13
FOLDED = 3  # nodes behind a layer that may have been folded into it


def normalize(model: ir.Model) -> ir.Model:
    """Opset 21, constants as initializers, batch norm folded into convolutions, unique names.

    Global means become pooling, the pads of transposed convolutions explicit, lookups of one row that row. Layers
    without a bias get one of zeros.
    Changes `model`.
    """
    _refuse(model)
    for node in model.graph:
        node.name = node.name or node.outputs[0].name  # a name that the user may know from the file
    RemoveInitializersFromInputsPass()(model)
    written = _written(model)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    onnxscript.optimizer.optimize(model)
    model = onnxscript.rewriter.rewrite(model)
    _convert(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    mean_to_global_average_pool(model)
    make_pads_explicit(model)
    replace_constant_lookups(model)
    RemoveUnusedNodesPass()(model)
    _name_as_written(model, written)
    NameFixPass()(model)
    add_missing_biases(model)
    model.ir_version = IR_VERSION
    _refuse_bad_weights(model)
    return model


@dataclass(frozen=True)
class _Written:
    """A node as it stood in the file."""

    name: str
    op_type: str
    input: str | None


def _written(model: ir.Model) -> dict[str, _Written]:
    """The nodes by the names of their first outputs."""
    return {
        str(node.outputs[0].name): _Written(
            str(node.name), node.op_type, node.inputs[0].name if node.inputs[0] else None
        )
        for node in model.graph
        if node.inputs
    }


def _name_as_written(model: ir.Model, written: Mapping[str, _Written]) -> None:
    """Give nodes that a rewriting made anew, with other names, that of the node whose work they do.

    It is the nearest of their kind at their output or before it, as where a normalization was folded.
    """
    kept = {node.name for node in model.graph}
    for node in model.graph:
        name = _name_in_file(node, written)
        if name is not None and name not in kept:
            node.name = name


def _name_in_file(node: ir.Node, written: Mapping[str, _Written]) -> str | None:
    output = node.outputs[0].name
    for _ in range(1 + FOLDED):
        found = written.get(str(output))
        if found is None or found.op_type == node.op_type:
            return None if found is None else found.name
        output = found.input
    return None


def strip(model: ir.Model) -> None:
    """Drop what exporters note about the machine and the source code; it is not ours to pass on."""
    ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        node.meta.clear()


def check(model: ir.Model) -> None:
    """The ONNX checker. Raises InputError with its words."""
    try:
        CheckerPass()(model)
    except Exception as error:
        raise InputError(f"the ONNX checker refuses the model: {first_line(error)}") from error


def _convert(model: ir.Model) -> None:
    version = model.opset_imports.get("", 1)
    if version == OPSET:
        return
    onnxscript.version_converter.convert_version(model, OPSET, fallback=True)
    if model.opset_imports.get("") != OPSET:
        raise InputError(f"the model's opset {version} cannot be converted to {OPSET}; export it with opset {OPSET}")


def _refuse(model: ir.Model) -> None:
    version = model.opset_imports.get("", 0)
    if version < OLDEST_OPSET:
        raise InputError(f"the model's opset is {version}; mixq takes {OLDEST_OPSET} and newer: export it again")
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise InputError(f"node {node.name!r}: {node.op_type} holds a subgraph, which mixq cannot quantize")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise InputError(f"node {node.name!r}: {node.op_type}: the model is quantized already; bring it in FP32")


def _refuse_bad_weights(model: ir.Model) -> None:
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            raise InputError(f"the weight {name!r} has no value; is its external data missing?")
        numbers = value.const_value.numpy()
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all() and numbers.ndim > 0:
            raise InputError(f"the weight {name!r} holds NaN or infinite values; repair the checkpoint")
