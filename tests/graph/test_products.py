"""A transposition before a product is split into one that keeps rows together and a swap of the last two axes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mixq.config import LayerScheme, Precision, uniform
from mixq.graph import Graph, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.graph.products import swap_last
from mixq.graph.quantize import Parameters
from mixq.runtimes import get_runtime
from tests.helpers import Net, images, reference_run

EXAMPLE = images(2, 4)


def scores(order: list[int]) -> Net:
    """y = x · transposed(x), over the last two axes of x, whose other axes the transposition moves."""
    net = Net(4, 8, 8)
    net.op("Transpose", "x", name="left", perm=[0, 2, 1, 3])
    net.op("Transpose", "x", name="right", perm=order)
    net.op("MatMul", "left", "right", name="y")
    return net


def transposed(model: ir.Model) -> dict[str, list[int]]:
    return {str(n.name): list(n.attributes["perm"].as_ints()) for n in model.graph if n.op_type == "Transpose"}


def test_it_computes_the_same() -> None:
    proto = scores([0, 2, 3, 1]).model("y", ranks=[4])
    model = ir.from_proto(proto)
    swap_last(model)
    assert transposed(model) == {"left": [0, 2, 1, 3], "right": [0, 2, 1, 3], "right_swap": [0, 1, 3, 2]}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    got = reference_run(ir.to_proto(model).SerializeToString())(EXAMPLE)["y"]
    np.testing.assert_array_equal(got, reference_run(proto.SerializeToString())(EXAMPLE)["y"])


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 3, 2]], ids=["no swap", "nothing but a swap"])
def test_others_are_left_alone(order: list[int]) -> None:
    model = ir.from_proto(scores(order).model("y", ranks=[4]))
    swap_last(model)
    assert transposed(model)["right"] == order
    assert len(transposed(model)) == 2


@pytest.mark.parametrize(("runtime", "count"), [("openvino", 3), ("onnxruntime", 2)])
def test_only_openvino_is_given_the_swap(runtime: str, count: int) -> None:
    net = scores([0, 2, 3, 1])
    net.op("MatMul", "y", net.weight("w", 4, 4), name="z")
    graph: Graph = net.graph("z", example=EXAMPLE, ranks=[4])
    found = get_runtime(runtime)
    fp32 = uniform(graph.fingerprint, graph.layer_names, LayerScheme(precision=Precision.FP32))
    model = lower(graph, fp32, make_plan(graph, [], found.placement), Parameters())
    assert len(transposed(model)) == count
    got = found.compile(serialize(model), 1).run(EXAMPLE)["z"]
    np.testing.assert_allclose(got, reference_run(serialize(graph.model))(EXAMPLE)["z"], rtol=1e-4, atol=1e-4)
