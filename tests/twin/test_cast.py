"""16-bit floats are rounded exactly but stay float32, and the rounding passes straight through in the gradient."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch

from mixq.twin import Twin

from .oracle import node_model, normal, run_node, run_twin

HALVES = [(onnx.TensorProto.FLOAT16, np.float16), (onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16)]
VALUES = np.concatenate([normal(1000), [0, 1e-7, -3e-6, 65504, -3e38, np.inf, -np.inf, np.nan]]).astype(np.float32)


@pytest.mark.parametrize(("to", "dtype"), HALVES)
def test_rounds_like_the_type_and_stays_float32(to: int, dtype: npt.DTypeLike) -> None:
    rounded = run_node("Cast", {"x": VALUES}, to=to)
    assert rounded.dtype == np.float32
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded, VALUES.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(("to", "dtype"), HALVES)
def test_cast_like_takes_the_type_that_the_graph_states(to: int, dtype: npt.DTypeLike) -> None:
    model = ir.from_proto(node_model("CastLike", 19, {"x": VALUES, "target": normal(1)}))
    model.graph.inputs[1].dtype = ir.DataType(to)
    rounded = run_twin(Twin(model), {"x": VALUES, "target": normal(1)})["y0"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(rounded, VALUES.astype(dtype).astype(np.float32))


def test_cast_like_without_a_stated_type_takes_the_tensors() -> None:
    model = ir.from_proto(node_model("CastLike", 19, {"x": normal(3), "target": normal(1)}))
    model.graph.inputs[1].type = None
    outputs = Twin(model)({"x": torch.tensor([1.5, -2.5]), "target": torch.tensor([1])})
    assert outputs["y0"].tolist() == [1, -2]


@pytest.mark.parametrize("to", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT])
def test_gradient_passes_straight_through(to: int) -> None:
    x = torch.from_numpy(normal(100)).requires_grad_()
    gradient = torch.full((100,), 1e-9)  # would vanish in float16
    Twin(ir.from_proto(node_model("Cast", 21, {"x": normal(100)}, to=to)))({"x": x})["y0"].backward(gradient)
    assert x.grad is not None
    assert torch.equal(x.grad, gradient)
