"""Forms of ops that ONNX's node tests leave out, against the ONNX reference evaluator.

Old opsets, windows that stand askew, fewer or more axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .oracle import Array, assert_like_reference, node_model, normal, run_node

IMAGE = normal(2, 4, 9, 8)
LEFT_OUT = np.zeros(0, np.float32)


def form(op_type: str, inputs: dict[str, Array], opset: int = 21, **attributes: Any) -> tuple[Any, dict[str, Array]]:
    return node_model(op_type, opset, inputs, **attributes), {name: array for name, array in inputs.items() if name}


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


CONVOLUTIONS = {
    "1d": form("Conv", {"x": normal(2, 3, 11), "w": normal(5, 3, 4)}, strides=[2], pads=[2, 1]),
    "3d": form("Conv", {"x": normal(1, 2, 5, 6, 7), "w": normal(3, 2, 2, 3, 2)}, pads=[1, 0, 1, 0, 1, 1]),
    "groups": form("Conv", {"x": IMAGE, "w": normal(6, 2, 3, 3), "b": normal(6)}, group=2, pads=[1] * 4),
    "dilated": form("Conv", {"x": IMAGE, "w": normal(6, 4, 3, 3)}, dilations=[2, 1], pads=[2, 1, 2, 1]),
    "depthwise": form("Conv", {"x": IMAGE, "w": normal(4, 1, 3, 3)}, group=4, strides=[2, 2], pads=[0, 0, 1, 1]),
    "same_upper": form("Conv", {"x": IMAGE, "w": normal(6, 4, 3, 4)}, strides=[2, 2], auto_pad="SAME_UPPER"),
    "same_lower": form("Conv", {"x": IMAGE, "w": normal(6, 4, 2, 4)}, strides=[1, 1], auto_pad="SAME_LOWER"),
    "valid": form("Conv", {"x": IMAGE, "w": normal(6, 4, 3, 3)}, strides=[2, 1], auto_pad="VALID"),
    "transpose": form(
        "ConvTranspose",
        {"x": IMAGE, "w": normal(4, 3, 3, 3), "b": normal(3)},
        strides=[2, 2],
        pads=[1] * 4,
        output_padding=[1, 1],
    ),
    "transpose_askew": form(
        "ConvTranspose", {"x": IMAGE, "w": normal(4, 3, 3, 3), "b": normal(3)}, strides=[2, 2], pads=[1, 0, 0, 1]
    ),
}
POOLS = {
    "max_1d": form("MaxPool", {"x": normal(2, 3, 11)}, kernel_shape=[3], strides=[2], pads=[1, 1]),
    "max_ceil_askew": form(
        "MaxPool", {"x": IMAGE}, kernel_shape=[3, 2], strides=[2, 3], pads=[0, 1, 1, 0], ceil_mode=1
    ),
    "mean_askew": form("AveragePool", {"x": IMAGE}, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1]),
    "mean_counting_pads": form(
        "AveragePool", {"x": IMAGE}, kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1
    ),
}
OTHERS = {
    "gemm_row_bias": form("Gemm", {"a": normal(3, 4), "b": normal(5, 4), "c": normal(5)}, transB=1),
    "layer_norm_no_bias": form("LayerNormalization", {"x": normal(2, 3, 6), "s": normal(6)}, axis=-1),
    "clip_upper_only": form("Clip", {"x": IMAGE, "": LEFT_OUT, "high": np.array(1, np.float32)}),
    "squeeze_all": form("Squeeze", {"x": normal(2, 1, 3, 1)}),
    "slice_nothing": form("Slice", {"x": IMAGE, "s": ints(5), "e": ints(2), "a": ints(2)}),
    "slice_steps": form("Slice", {"x": IMAGE, "s": ints(-1, 1), "e": ints(-100, 8), "a": ints(3, 2), "t": ints(-2, 3)}),
    "pad_reflect_far": form("Pad", {"x": IMAGE, "p": ints(7, 2), "": LEFT_OUT, "a": ints(2)}, mode="reflect"),
    "gather_column": form("Gather", {"x": normal(5, 3), "i": ints(4, -5, 0).reshape(3, 1)}),
    "gather_one": form("Gather", {"x": normal(5, 3), "i": np.array(-1)}, axis=1),
    "expand_fewer_axes": form("Expand", {"x": normal(2, 1, 3), "s": ints(4, 1)}),
    "reduce_prod_axes": form("ReduceProd", {"x": IMAGE, "a": ints(-1, 0)}, keepdims=0),
    "reduce_l2_noop": form("ReduceL2", {"x": IMAGE}, noop_with_empty_axes=1),
    "reduce_max_noop": form("ReduceMax", {"x": IMAGE}, noop_with_empty_axes=1),
    "constant_ints": form("Constant", {}, value_ints=[1, 2, 3]),
    "constant_int": form("Constant", {}, value_int=7),
    "constant_floats": form("Constant", {}, value_floats=[0.5, 2.0]),
    "constant_float": form("Constant", {}, value_float=0.5),
    "resize_linear_1d": form(
        "Resize",
        {"x": normal(1, 2, 7), "": LEFT_OUT, "s": np.array([1, 1, 2.3], np.float32)},
        mode="linear",
        coordinate_transformation_mode="asymmetric",
    ),
}
OLD_OPSETS = {
    "clip": form("Clip", {"x": IMAGE}, opset=6, min=-0.5, max=1.0),
    "dropout": form("Dropout", {"x": IMAGE}, opset=10, ratio=0.5),
    "group_norm": form("GroupNormalization", {"x": IMAGE, "s": normal(2), "b": normal(2)}, opset=18, num_groups=2),
    "pad": form("Pad", {"x": normal(2, 3)}, opset=2, pads=[1, 0, 0, 2], value=1.5),
    "reduce_mean": form("ReduceMean", {"x": IMAGE}, opset=13, axes=[2, -1], keepdims=0),
    "reduce_sum": form("ReduceSum", {"x": IMAGE}, opset=11, axes=[-1, 1]),
    "slice": form("Slice", {"x": IMAGE}, opset=1, starts=[1, -3], ends=[3, 100], axes=[1, 2]),
    "split": form("Split", {"x": normal(2, 6)}, opset=11, outputs=2, axis=1, split=[4, 2]),
    "squeeze": form("Squeeze", {"x": normal(2, 1, 3, 1)}, opset=11, axes=[1, -1]),
    "unsqueeze": form("Unsqueeze", {"x": normal(2, 3)}, opset=11, axes=[0, -1]),
}
FORMS = {
    f"{family}-{name}": form
    for family, forms in {"conv": CONVOLUTIONS, "pool": POOLS, "other": OTHERS, "old": OLD_OPSETS}.items()
    for name, form in forms.items()
}


@pytest.mark.parametrize("name", FORMS)
def test_agrees_with_the_reference_evaluator(name: str) -> None:
    assert_like_reference(*FORMS[name])


def test_negative_pads_cut() -> None:
    # The reference evaluator refuses them.
    padded = run_node("Pad", {"x": IMAGE, "p": ints(0, 0, -1, 2, 0, 0, 1, -2)})
    np.testing.assert_array_equal(padded, np.pad(IMAGE[:, :, 1:, :-2], ((0, 0), (0, 0), (0, 1), (2, 0))))


def test_batch_norm_before_opset_14() -> None:
    # The reference evaluator takes the statistics of the batch there; with one output, ONNX says, it is inference.
    scale, bias, mean, variance = normal(4, seed=1), normal(4, seed=2), normal(4, seed=3), normal(4, seed=4) ** 2
    inputs = {"x": IMAGE, "s": scale, "b": bias, "m": mean, "v": variance}
    expected = (IMAGE.transpose(0, 2, 3, 1) - mean) / np.sqrt(variance + 1e-3) * scale + bias
    actual = run_node("BatchNormalization", inputs, opset=9, epsilon=1e-3)
    np.testing.assert_allclose(actual.transpose(0, 2, 3, 1), expected, rtol=1e-5, atol=1e-5)
