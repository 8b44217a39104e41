"""Pools and normalizations by p-norms and deviations: forms that ONNX's node tests leave out, and zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mixq.twin import Twin

from .oracle import assert_like_reference, node_model, normal, run_node

IMAGE = normal(2, 4, 9, 8)
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "pool_askew": ("LpPool", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [0, 1, 1, 0]}),
    "mean_variance_of_other_axes": ("MeanVarianceNormalization", {"axes": [1, -1]}),
}
ZEROS: dict[str, dict[str, Any]] = {
    "GlobalLpPool": {},
    "LpNormalization": {},
    "LpPool": {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]},
    "MeanVarianceNormalization": {},
}


@pytest.mark.parametrize("name", FORMS)
def test_agrees_with_the_reference_evaluator(name: str) -> None:
    op_type, attributes = FORMS[name]
    assert_like_reference(node_model(op_type, 21, {"x": IMAGE}, **attributes), {"x": IMAGE})


@pytest.mark.parametrize("p", [1, 2, 3])
def test_global_lp_pool_is_the_norm_of_a_channel(p: int) -> None:
    expected = np.linalg.norm(IMAGE.reshape(2, 4, -1), p, axis=-1)
    actual = run_node("GlobalLpPool", {"x": IMAGE}, p=p)
    assert actual.shape == (2, 4, 1, 1)
    np.testing.assert_allclose(actual[:, :, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool_of_one_window_is_the_norm_of_a_channel(p: int) -> None:
    # The reference evaluator knows p=2 only.
    expected = np.linalg.norm(IMAGE.reshape(2, 4, -1), p, axis=-1)
    actual = run_node("LpPool", {"x": IMAGE}, p=p, kernel_shape=[9, 8])
    np.testing.assert_allclose(actual[:, :, 0, 0], expected, rtol=1e-5)


def test_lp_pool_counts_nothing_beyond_the_end() -> None:
    # The reference evaluator scales a window that sticks out (ceil_mode) as if it were full.
    attributes: dict[str, Any] = {"kernel_shape": [2, 3], "strides": [2, 2]}
    longer = np.pad(IMAGE, ((0, 0), (0, 0), (0, 1), (0, 1)))
    expected = run_node("LpPool", {"x": longer}, **attributes)
    np.testing.assert_array_equal(run_node("LpPool", {"x": IMAGE}, ceil_mode=1, **attributes), expected)


def test_l1_normalization_divides_by_the_sum_of_the_absolute_values() -> None:
    actual = run_node("LpNormalization", {"x": IMAGE}, p=1, axis=1)
    np.testing.assert_allclose(actual, IMAGE / abs(IMAGE).sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("op_type", ZEROS)
def test_zeros_give_zeros_and_a_finite_gradient(op_type: str) -> None:
    x = torch.zeros(1, 2, 3, 3, requires_grad=True)
    y = Twin(ir.from_proto(node_model(op_type, 21, {"x": x.detach().numpy()}, **ZEROS[op_type])))({"x": x})["y0"]
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
