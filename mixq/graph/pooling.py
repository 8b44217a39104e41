"""Rewrites a mean over all positions as the pooling that it is.

torch's exporter writes AdaptiveAvgPool2d(1) as ReduceMean. GlobalAveragePool computes the same, has integer kernels
where ReduceMean has none (ONNX Runtime 1.31), and keeps ONNX Runtime's blocked float layout.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


def mean_to_global_average_pool(model: ir.Model) -> bool:
    """Replace every ReduceMean over all axes behind batch and channels; whether there was one. Changes `model`."""
    means = [node for node in model.graph if node.op_type == "ReduceMean" and node.domain == ""]
    if not means:
        return False
    ShapeInferencePass(strict_mode=False, data_prop=True)(model)
    return bool([node for node in means if _replace(model.graph, node)])


def _replace(graph: ir.Graph, mean: ir.Node) -> bool:
    data = mean.inputs[0]
    if data is None or data.shape is None or not _is_global(mean, len(data.shape)):
        return False
    old = mean.outputs[0]
    pool = ir.node("GlobalAveragePool", [data], name=mean.name)
    nodes, last = [pool], pool
    if not mean.attributes.get_int("keepdims", 1):
        # No Flatten: it would be a Reshape when what is written is read again.
        shape = _row_shape(graph, data, f"{mean.name}_shape")
        last = ir.node("Reshape", [pool.outputs[0], shape], name=f"{mean.name}_flatten")
        pool.outputs[0].name, pool.outputs[0].type = f"{old.name}_pooled", old.type
        nodes.append(last)
    new = last.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(mean, nodes)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(mean, safe=True)
    return True


def _row_shape(graph: ir.Graph, data: ir.Value, name: str) -> ir.Value:
    """What reshapes `data`, pooled, to a row of channels a sample."""
    channels = data.shape[1] if data.shape is not None else None
    sizes = np.array([0, channels if isinstance(channels, int) else -1], np.int64)
    shape = ir.val(name, const_value=ir.tensor(sizes, name=name))
    graph.register_initializer(shape)
    return shape


def _is_global(mean: ir.Node, rank: int) -> bool:
    if rank < 3 or len(mean.inputs) < 2 or mean.inputs[1] is None:
        return False
    axes = ir.convenience.get_const_tensor(mean.inputs[1])
    return axes is not None and sorted(int(a) % rank for a in axes.numpy().reshape(-1)) == list(range(2, rank))
