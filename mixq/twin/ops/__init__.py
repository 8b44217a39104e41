"""The table: ONNX op type → torch function, with the semantics of opset 13 to 21.

Where an older opset only wrote the same thing otherwise (attributes instead of inputs), that form works too. An op
that is not here is refused when a Twin is built. To add one: a function in the file of its kind, and a row (here,
or in elementwise.py).
"""

from __future__ import annotations

import torch

from mixq.twin.ops import (
    cast,
    conv,
    grid,
    index,
    linear,
    norm,
    pad,
    pick,
    pool,
    quant,
    recurrent,
    reduce,
    resize,
    scatter,
    shape,
    source,
)
from mixq.twin.ops.elementwise import ELEMENTWISE
from mixq.twin.ops.reduce import extreme, reduction
from mixq.twin.ops.signature import Attributes, Inputs, Op, Outputs, plain, spread

__all__ = ["OPS", "Attributes", "Inputs", "Op", "Outputs"]

OPS: dict[str, Op] = {
    **ELEMENTWISE,
    # layers and products
    "Conv": spread(conv.conv),
    "ConvTranspose": spread(conv.conv_transpose),
    "Det": plain(torch.linalg.det),
    "Einsum": spread(linear.einsum),
    "GRU": spread(recurrent.gru),
    "Gemm": spread(linear.gemm),
    "LSTM": spread(recurrent.lstm),
    "MatMul": plain(torch.matmul),
    "RNN": spread(recurrent.rnn),
    # normalizations
    "BatchNormalization": spread(norm.batch_norm),
    "Dropout": spread(norm.dropout),
    "GroupNormalization": spread(norm.group_norm),
    "InstanceNormalization": spread(norm.instance_norm),
    "LRN": spread(norm.local_response_norm),
    "LayerNormalization": spread(norm.layer_norm),
    "LpNormalization": spread(norm.lp_norm),
    "MeanVarianceNormalization": spread(norm.mean_variance_norm),
    "RMSNormalization": spread(norm.rms_norm),
    # pools and reductions
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "AveragePool": spread(pool.average_pool),
    "GlobalAveragePool": plain(pool.global_average_pool),
    "GlobalLpPool": spread(pool.global_lp_pool),
    "GlobalMaxPool": plain(pool.global_max_pool),
    "LpPool": spread(pool.lp_pool),
    "MaxPool": spread(pool.max_pool),
    "ReduceL1": reduction(reduce.l1),
    "ReduceL2": reduction(reduce.l2),
    "ReduceLogSum": reduction(reduce.log_sum),
    "ReduceLogSumExp": reduction(reduce.log_sum_exp),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(reduce.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceProd": reduction(reduce.product),
    "ReduceSum": reduction(reduce.total),
    "ReduceSumSquare": reduction(reduce.sum_square),
    # shapes, parts and copies
    "Compress": spread(pick.compress),
    "Concat": spread(index.concat),
    "DepthToSpace": spread(shape.depth_to_space),
    "Expand": plain(shape.expand),
    "Flatten": spread(shape.flatten),
    "Gather": spread(index.gather),
    "GatherElements": spread(index.gather_elements),
    "GatherND": spread(index.gather_nd),
    "GridSample": spread(grid.grid_sample),
    "Identity": plain(lambda x: x),
    "NonZero": plain(pick.non_zero),
    "Pad": spread(pad.pad),
    "Reshape": spread(shape.reshape),
    "Resize": spread(resize.resize),
    "ReverseSequence": spread(index.reverse_sequence),
    "ScatterElements": spread(scatter.scatter_elements),
    "ScatterND": spread(scatter.scatter_nd),
    "Slice": spread(index.slice_),
    "SpaceToDepth": spread(shape.space_to_depth),
    "Split": spread(index.split),
    "Squeeze": spread(shape.squeeze),
    "Tile": plain(shape.tile),
    "TopK": spread(pick.top_k),
    "Transpose": spread(shape.transpose),
    "Unsqueeze": spread(shape.unsqueeze),
    # tensors from attributes, shapes or numbers
    "Constant": spread(source.constant),
    "ConstantOfShape": spread(source.constant_of_shape),
    "EyeLike": spread(source.eye_like),
    "OneHot": spread(source.one_hot),
    "Range": plain(source.range_),
    "Shape": spread(source.shape_of),
    "Size": plain(source.size_of),
    # types and quantization
    "Cast": spread(cast.cast),
    "CastLike": spread(cast.cast_like),
    "DequantizeLinear": spread(quant.dequantize),
    "QuantizeLinear": spread(quant.quantize),
}
