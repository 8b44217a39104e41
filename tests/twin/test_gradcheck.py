"""Gradients against finite differences, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mixq.twin import Twin

from .oracle import Array, node_model, normal

X = normal(3, 4)
IMAGE = normal(1, 2, 4, 5)
GRID = 0.6 * np.tanh(normal(1, 3, 3, 2))


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def scattered(reduction: str) -> tuple[dict[str, Array], dict[str, Any]]:
    inputs = {"x": X, "i": ints(0, 2, 2, -3).reshape(2, 2), "u": normal(2, 2, seed=1)}
    return inputs, {"axis": 1, "reduction": reduction}


def scattered_nd(reduction: str) -> tuple[dict[str, Array], dict[str, Any]]:
    return {"x": X, "i": ints(0, -1).reshape(2, 1), "u": normal(2, 4, seed=1)}, {"reduction": reduction}


# Name (up to a dash the op) → inputs and attributes.
FORMS: dict[str, tuple[dict[str, Array], dict[str, Any]]] = {
    "Acos": ({"x": 0.9 * np.tanh(X)}, {}),
    "Acosh": ({"x": 1.1 + X**2}, {}),
    "Asin": ({"x": 0.9 * np.tanh(X)}, {}),
    "Asinh": ({"x": X}, {}),
    "Atan": ({"x": X}, {}),
    "Atanh": ({"x": 0.9 * np.tanh(X)}, {}),
    "Cosh": ({"x": X}, {}),
    "Sinh": ({"x": X}, {}),
    "Tan": ({"x": np.tanh(X)}, {}),
    "Shrink": ({"x": X}, {"lambd": 0.3, "bias": 0.2}),
    "Det": ({"x": normal(2, 3, 3)}, {}),
    "GatherND": ({"x": X, "i": ints(0, 1, -1, 1).reshape(2, 2)}, {}),
    **{f"ScatterElements-{name}": scattered(name) for name in ("none", "add", "mul", "max", "min")},
    **{f"ScatterND-{name}": scattered_nd(name) for name in ("none", "add", "mul", "max", "min")},
    "OneHot": ({"i": ints(0, 2), "d": ints(3), "v": normal(2)}, {}),
    "TopK": ({"x": X, "k": ints(2)}, {"largest": 0}),
    "Compress": ({"x": X, "c": np.array([True, False, True])}, {"axis": 1}),
    "ReverseSequence": ({"x": normal(4, 2, 3), "n": ints(1, 3)}, {}),
    "GridSample-linear": ({"x": IMAGE, "g": GRID}, {}),
    "GridSample-cubic": ({"x": IMAGE, "g": GRID}, {"mode": "cubic", "padding_mode": "border"}),
    "GridSample-volume": ({"x": normal(1, 1, 3, 3, 3), "g": 0.5 * np.tanh(normal(1, 2, 2, 2, 3))}, {}),
    "LpNormalization-1": ({"x": X}, {"p": 1}),
    "LpNormalization-2": ({"x": X}, {"axis": 0}),
    "MeanVarianceNormalization": ({"x": IMAGE}, {}),
    "LpPool-1": ({"x": IMAGE}, {"kernel_shape": [2, 2], "p": 1}),
    "LpPool-2": ({"x": IMAGE}, {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "strides": [2, 1]}),
    "LpPool-3": ({"x": IMAGE}, {"kernel_shape": [2, 2], "dilations": [2, 1], "p": 3}),
    "GlobalLpPool": ({"x": IMAGE}, {"p": 3}),
}


@pytest.mark.parametrize("name", FORMS)
def test_gradient_is_the_slope(name: str) -> None:
    inputs, attributes = FORMS[name]
    wide = {key: array.astype(np.float64) if array.dtype == np.float32 else array for key, array in inputs.items()}
    twin = Twin(ir.from_proto(node_model(name.partition("-")[0], 21, wide, **attributes)))
    tensors = [torch.tensor(array, requires_grad=array.dtype == np.float64) for array in wide.values()]
    assert torch.autograd.gradcheck(lambda *values: twin(dict(zip(wide, values, strict=True)))["y0"], tensors)
