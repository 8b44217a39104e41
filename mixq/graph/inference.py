"""Element type and rank of every tensor, by ONNX shape inference."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def infer_types(model: ir.Model) -> None:
    """Note type and rank on every node's outputs; their extents stay open, for they depend on the batch.

    What a file claims about the shapes inside the graph is dropped: it may hold for the batch of its export only.
    """
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    inferred = model.clone()
    ShapeInferencePass(strict_mode=False, data_prop=True)(inferred)
    for node, twin in zip(model.graph, inferred.graph, strict=True):
        for output, found in zip(node.outputs, twin.outputs, strict=True):
            output.type = output.type or found.type
            if output.shape is None and found.shape is not None:
                output.shape = ir.Shape([None] * len(found.shape))
