"""Gradients of ops that are not one torch function, against the same thing written plainly in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixq.twin import Twin

from .oracle import Array, node_model, normal

IMAGE = normal(2, 4, 9, 8)
LEFT_OUT = np.zeros(0, np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


Plain = Callable[..., Tensor]
OPS: dict[str, tuple[dict[str, Array], dict[str, Any], Plain]] = {
    "Clip": ({"x": IMAGE, "low": scalar(-0.7), "high": scalar(1.2)}, {}, torch.clamp),
    "PRelu": ({"x": IMAGE, "slope": normal(4, 1, 1)}, {}, lambda x, slope: F.prelu(x, slope.flatten())),
    "HardSigmoid": ({"x": 4 * IMAGE}, {"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
    "Selu": ({"x": IMAGE}, {}, F.selu),
    "ReduceL2": ({"x": IMAGE}, {"keepdims": 0}, lambda x: (x * x).sum().sqrt()),
    "ReduceProd": ({"x": normal(3, 4)}, {"keepdims": 0}, torch.prod),
    "Gemm": (
        {"a": normal(3, 4), "b": normal(5, 4), "c": normal(3, 1)},
        {"transB": 1, "alpha": 0.5, "beta": 2.0},
        lambda a, b, c: 0.5 * a @ b.t() + 2 * c,
    ),
    "Conv": (
        {"x": IMAGE, "w": normal(6, 4, 3, 3), "b": normal(6)},
        {"pads": [0, 1, 2, 0], "strides": [2, 1]},
        lambda x, w, b: F.conv2d(F.pad(x, (1, 0, 0, 2)), w, b, (2, 1)),
    ),
    "ConvTranspose": (
        {"x": IMAGE, "w": normal(4, 3, 3, 3), "b": normal(3)},
        {"pads": [1, 0, 0, 1]},
        lambda x, w, b: F.conv_transpose2d(x, w, b)[:, :, 1:, :-1],
    ),
    "MaxPool": (
        {"x": IMAGE},
        {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1]},
        lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-100.0), 3, 1),
    ),
    "AveragePool": (
        {"x": IMAGE},
        {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1},
        lambda x: F.avg_pool2d(F.pad(x, (0, 1, 1, 0)), 3, 1),
    ),
    "Resize": (
        {"x": IMAGE, "": LEFT_OUT, "s": np.array([1, 1, 2, 3], np.float32)},
        {"mode": "linear"},
        lambda x, s: F.interpolate(x, scale_factor=(2, 3), mode="bilinear"),
    ),
}


def gradients(output: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    weight = torch.from_numpy(normal(*output.shape, seed=1))
    wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return list(torch.autograd.grad(output, wanted, weight))


@pytest.mark.parametrize("op_type", OPS)
def test_gradient_is_that_of_plain_torch(op_type: str) -> None:
    inputs, attributes, plain = OPS[op_type]
    tensors = {name: torch.tensor(array, requires_grad=name != "s") for name, array in inputs.items() if name}
    ours = Twin(ir.from_proto(node_model(op_type, 21, inputs, **attributes)))(tensors)["y0"]
    theirs = plain(*tensors.values())
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, tensors), gradients(theirs, tensors))


def test_clip_to_constants_stops_the_gradient_outside() -> None:
    x = torch.tensor([-2.0, -0.5, 0.5, 2.0], requires_grad=True)
    model = ir.from_proto(node_model("Clip", 6, {"x": x.detach().numpy()}, min=-1.0, max=1.0))
    Twin(model)({"x": x})["y0"].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]
