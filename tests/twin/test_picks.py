"""Forms of picking, scattering and sampling that ONNX's node tests leave out, against the ONNX reference evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from mixq.errors import InputError

from .oracle import Array, assert_like_reference, node_model, normal, run_node

IMAGE = normal(2, 4, 9, 8)
GRID = normal(2, 5, 6, 2)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


SCATTERED = {"x": normal(3, 4), "i": ints(-1, 0, 1, 1).reshape(2, 2), "u": normal(2, 2, seed=1)}
ROWS = {"x": normal(3, 4), "i": ints(-1, 1).reshape(2, 1), "u": normal(2, 4, seed=1)}
FORMS: dict[str, tuple[str, dict[str, Array], dict[str, Any]]] = {
    "gather_nd_two_batch_axes": (
        "GatherND",
        {"x": normal(2, 3, 4, 5), "i": ints(*[3, 0, -1, 2] * 3).reshape(2, 3, 2, 1)},
        {"batch_dims": 2},
    ),
    "gather_nd_nothing": ("GatherND", {"x": normal(2, 3), "i": np.zeros((0, 2), np.int64)}, {}),
    "scatter_elements_add": ("ScatterElements", SCATTERED, {"axis": 1, "reduction": "add"}),
    "scatter_nd_rows_from_the_end": ("ScatterND", ROWS, {}),
    "one_hot_of_floats": (
        "OneHot",
        {"i": np.array([[1, -2], [7, 0]], np.float32), "d": np.array(3), "v": normal(2)},
        {"axis": 1},
    ),
    "top_k_everything": ("TopK", {"x": normal(3, 4), "k": ints(3)}, {"axis": 0, "largest": 0, "outputs": 2}),
    "compress_short": ("Compress", {"x": normal(3, 4), "c": np.array([False, True])}, {"axis": 1}),
    "eye_like_bool": ("EyeLike", {"x": normal(3, 4)}, {"dtype": onnx.TensorProto.BOOL, "k": -1}),
    "reverse_sequence_batch_first": (
        "ReverseSequence",
        {"x": normal(2, 4, 3), "n": ints(1, 3)},
        {"batch_axis": 0, "time_axis": 1},
    ),
    "grid_sample_reflected": ("GridSample", {"x": IMAGE, "g": GRID}, {"mode": "cubic", "padding_mode": "reflection"}),
    "grid_sample_double": ("GridSample", {"x": IMAGE, "g": GRID.astype(np.float64)}, {"padding_mode": "border"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_agrees_with_the_reference_evaluator(name: str) -> None:
    op_type, inputs, attributes = FORMS[name]
    assert_like_reference(node_model(op_type, 21, inputs, **attributes), inputs)


def test_top_k_with_k_as_an_attribute() -> None:
    assert run_node("TopK", {"x": np.array([3, 1, 2], np.float32)}, opset=1, k=2).tolist() == [3, 2]


def test_non_zero_of_a_number_has_no_rows() -> None:
    assert run_node("NonZero", {"x": np.array(2, np.float32)}).shape == (0, 1)


@pytest.mark.parametrize(("old", "new"), [("bilinear", "linear"), ("bicubic", "cubic"), ("nearest", "nearest")])
def test_grid_sample_knows_the_modes_by_their_old_names(old: str, new: str) -> None:
    inputs = {"x": IMAGE, "g": GRID}
    expected = run_node("GridSample", inputs, opset=20, mode=new)
    np.testing.assert_array_equal(run_node("GridSample", inputs, opset=16, mode=old), expected)


@pytest.mark.parametrize(("mode", "axes"), [("cubic", 3), ("linear", 1), ("lanczos", 2)])
def test_grid_sample_refuses_what_torch_has_not(mode: str, axes: int) -> None:
    inputs = {"x": np.ones((1, 1, *[3] * axes), np.float32), "g": np.zeros((1, *[2] * axes, axes), np.float32)}
    with pytest.raises(InputError, match=f"GridSample: mode='{mode}'"):
        run_node("GridSample", inputs, mode=mode)


@pytest.mark.parametrize("op_type", ["ScatterElements", "ScatterND"])
def test_scatter_refuses_an_unknown_reduction(op_type: str) -> None:
    with pytest.raises(InputError, match="reduction='mean' is not one of none, add, mul, max, min"):
        run_node(op_type, ROWS if op_type == "ScatterND" else SCATTERED, reduction="mean")
