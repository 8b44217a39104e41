"""Functions that alone read a tensor: which tensors have one, and that it is what ONNX says it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mixq.graph.elementwise import FUNCTIONS, only_readers
from tests.helpers import Net, images, reference_run

ATTRIBUTES: dict[str, dict[str, Any]] = {"LeakyRelu": {"alpha": 0.3}}


@pytest.mark.parametrize("attributes", [True, False], ids=["attributes", "defaults"])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_the_function_is_onnxs(op: str, attributes: bool) -> None:
    net = Net(3, 8, 8)
    read = net.op(op, net.conv("x", 4, "layer"), **(ATTRIBUTES.get(op, {}) if attributes else {}))
    graph = net.graph(read, example=images(2), ranks=[4])
    node = helper.make_node(op, ["x"], ["y"], **(ATTRIBUTES.get(op, {}) if attributes else {}))
    x, y = ([helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])] for name in "xy")
    alone = helper.make_model(helper.make_graph([node], "op", x, y))
    values = np.linspace(-3, 3, 100, dtype=np.float32)
    want = reference_run(alone.SerializeToString())({"x": values})["y"]
    np.testing.assert_allclose(only_readers(graph.model)["layer"](values), want, rtol=1e-6, atol=1e-7)


def test_a_tensor_with_two_readers_has_none() -> None:
    net = Net(3, 8, 8)
    layer = net.conv("x", 4, "layer")
    both = net.op("Mul", layer, net.op("Sigmoid", layer))
    assert only_readers(net.graph(both, example=images(2), ranks=[4]).model) == {}


def test_a_tensor_that_is_given_out_has_none() -> None:
    net = Net(3, 8, 8)
    layer = net.conv("x", 4, "layer")
    outputs = (layer, net.op("LeakyRelu", layer))
    assert only_readers(net.graph(*outputs, example=images(2), ranks=[4, 4]).model) == {}
