"""The arithmetic of quantization against ONNX, against torch, and against what it promises."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from mixq import affine
from mixq.affine import S8, S32, U8, QParams
from mixq.task import Array
from tests.helpers import reference_run

floats = st.floats(-1e4, 1e4, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 40), elements=floats)
ranges = st.tuples(floats, floats).map(sorted)
wide = ranges.filter(lambda ends: ends[1] - ends[0] > 0.01)  # the reference casts to int32 before it clips
channels = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)), elements=floats)


def onnx_quantize(x: Array, qparams: QParams, dtype: type[np.integer]) -> Array:
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=qparams.axis or 0)
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "s")]
    kind = onnx.TensorProto.UINT8 if dtype is np.uint8 else onnx.TensorProto.INT8
    inputs.append(helper.make_tensor_value_info("z", kind, None))
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feeds = {"x": x, "s": qparams.scale, "z": qparams.zero_point.astype(dtype)}
    (found,) = reference_run(model.SerializeToString())(feeds).values()
    return found


@given(arrays, wide)
def test_u8_is_onnx_quantize_linear(x: Array, ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    np.testing.assert_array_equal(affine.quantize(x, qparams, U8), onnx_quantize(x, qparams, np.uint8))


@given(channels, st.integers(0, 2))
def test_s8_per_channel_is_onnx_quantize_linear(x: Array, axis: int) -> None:
    other = tuple(a for a in range(3) if a != axis)
    qparams = affine.symmetric(np.abs(x).max(other), axis)
    found = affine.quantize(x, qparams, S8)
    np.testing.assert_array_equal(found, onnx_quantize(x, qparams, np.int8))
    assert np.all(found != -128)


@given(ranges)
def test_even_codes_are_signed_ones_without_a_zero_point(ends: list[float]) -> None:
    low, high = ends
    qparams = affine.even(low, high)
    assert qparams.zero_point == (0 if low >= 0 else affine.MIDDLE)
    reached = affine.dequantize(np.array([0, 255], np.uint8), qparams)
    assert reached[0] <= low * (1 - 1e-6) + 1e-9 or low >= 0
    assert reached[1] >= high * (1 - 1e-6) - 1e-9 or high <= 0
    codes = affine.quantize(np.linspace(low, high, 50, dtype=np.float32), qparams, U8).astype(int)
    signed = QParams(qparams.scale, np.zeros_like(qparams.zero_point))
    if low < 0:
        wanted = affine.quantize(np.linspace(low, high, 50, dtype=np.float32), signed, S8)
        np.testing.assert_array_equal(codes - affine.MIDDLE, wanted)


@given(arrays, ranges)
def test_a_round_trip_errs_by_half_a_step_inside_the_range(x: Array, ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    low, high = affine.dequantize(np.array([0, 255], np.uint8), qparams)
    inside = np.clip(x, low, high)
    error = np.abs(affine.fake_quantize(inside, qparams, U8).astype(np.float64) - inside)
    assert np.all(error <= 0.5 * float(qparams.scale) + 1e-6 * np.abs(inside))


@given(ranges)
def test_the_range_is_covered_to_half_a_step(ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    low, high = affine.dequantize(np.array([0, 255], np.uint8), qparams)
    slack = 0.51 * float(qparams.scale)
    assert low <= min(ends[0], 0) + slack
    assert high >= max(ends[1], 0) - slack


@given(ranges)
def test_zero_is_exact(ends: list[float]) -> None:
    zero = np.zeros(3, np.float32)
    np.testing.assert_array_equal(affine.fake_quantize(zero, affine.asymmetric(*ends), U8), zero)


@given(arrays, ranges)
def test_codes_are_fixed_points(x: Array, ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    once = affine.quantize(x, qparams, U8)
    np.testing.assert_array_equal(affine.quantize(affine.dequantize(once, qparams), qparams, U8), once)


@given(arrays, ranges)
def test_numpy_and_torch_agree(x: Array, ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    scale, zero_point = torch.from_numpy(qparams.scale), torch.from_numpy(qparams.zero_point)
    codes = affine.codes(torch.from_numpy(x), scale, zero_point, U8, xp=torch)
    np.testing.assert_array_equal(codes.numpy(), affine.quantize(x, qparams, U8))
    back = affine.values(codes, scale, zero_point).numpy()
    np.testing.assert_allclose(back, affine.fake_quantize(x, qparams, U8), rtol=1e-6)


@given(arrays)
def test_s32_holds_what_float32_cannot(x: Array) -> None:
    qparams = QParams(np.asarray(np.float32(2.0**-20)), np.asarray(0))
    np.testing.assert_array_equal(
        affine.quantize(x, qparams, S32), np.clip(np.rint(x.astype(np.float64) * 2.0**20), *S32)
    )


@given(hnp.arrays(np.float32, 5, elements=floats), st.floats(1e-6, 10))
def test_room_for_the_bias(bias: Array, data_scale: float) -> None:
    weight = affine.symmetric(affine.with_room_for_bias(np.full(5, 1e-6), bias, data_scale), 0)
    assert np.all(np.abs(bias / (weight.scale.astype(np.float64) * data_scale)) <= 2**30 * 1.001)


def test_ties_go_to_even() -> None:
    qparams = QParams(np.asarray(1.0), np.asarray(0))
    assert affine.quantize(np.array([0.5, 1.5, 2.5, -0.5], np.float32), qparams, S8).tolist() == [0, 2, 2, 0]


def test_a_range_of_nothing_still_has_a_scale() -> None:
    for qparams in (affine.asymmetric(0, 0), affine.symmetric(np.zeros(2), 0)):
        assert np.all(qparams.scale > 0)
    product = affine.asymmetric(0, 0).scale * affine.symmetric(np.zeros(2), 0).scale
    assert np.all(product > np.finfo(np.float32).tiny)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        affine.quantize(np.array([np.nan], np.float32), affine.asymmetric(0, 1), U8)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis", "reason"),
    [
        (np.asarray(0.0), np.asarray(0), None, "positive"),
        (np.asarray(np.nan), np.asarray(0), None, "finite"),
        (np.asarray([1.0, -1.0]), np.asarray([0, 0]), 0, "positive"),
        (np.asarray([1.0]), np.asarray([0]), None, "do not fit axis=None"),
        (np.asarray(1.0), np.asarray(0), 0, "do not fit axis=0"),
        (np.asarray([1.0, 2.0]), np.asarray([0]), 0, "do not fit"),
    ],
)
def test_parameters_that_cannot_be_are_refused(scale: Array, zero_point: Array, axis: int | None, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        QParams(scale, zero_point, axis)


@given(arrays, wide)
def test_rounded_is_the_values_of_the_codes(x: Array, ends: list[float]) -> None:
    qparams = affine.asymmetric(*ends)
    scale, zero_point = qparams.scale, np.float32(qparams.zero_point)
    expected = affine.values(affine.codes(x, scale, zero_point, U8), zero_point=zero_point, scale=scale)
    np.testing.assert_array_equal(affine.rounded(x, scale, zero_point, U8), expected)
    tensor = affine.rounded(torch.from_numpy(x), torch.from_numpy(scale), float(zero_point), U8, xp=torch)
    np.testing.assert_array_equal(tensor.numpy(), expected)
