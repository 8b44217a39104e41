"""Float regions: one type inside, casts at the borders only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from mixq.config import MixedPrecisionConfig, Precision
from mixq.graph import Graph, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.graph.quantize import Parameters
from mixq.graph.regions import float_types
from mixq.runtimes import get_runtime
from tests.helpers import Net, images, ops, ort_run, reference_run, residual, schemes

FLOAT, HALF, BRAIN = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
EXAMPLE = images(3, 4)
IMAGES = images(3, name="image")


def typed(graph: Graph, config: MixedPrecisionConfig) -> onnx.ModelProto:
    plan = make_plan(graph, [], get_runtime("openvino").placement)
    return onnx.load_model_from_string(serialize(lower(graph, config, plan, Parameters())))


def casts(model: onnx.ModelProto) -> Counter[int]:
    return Counter(node.attribute[0].i for node in model.graph.node if node.op_type == "Cast")


def chain() -> Graph:
    """Three convolutions in a row, a ReLU behind each."""
    net, value = Net(4, 8, 8), "x"
    for name in ("a", "b", "c"):
        value = net.op("Relu", net.conv(value, 4, name))
    return net.graph(value, example=EXAMPLE, ranks=[4])


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", HALF), ("bf16", BRAIN)])
def test_a_network_of_one_type_has_casts_at_its_ends_only(precision: str, dtype: int) -> None:
    model = typed(residual(), schemes(residual(), precision))
    assert casts(model) == {dtype: 1, FLOAT: 1}
    found = ops(model)
    assert (found[0], found[-1]) == ("Cast", "Cast")
    stored = {value.data_type for value in model.graph.initializer if not value.name.startswith("val_")}
    assert stored - {onnx.TensorProto.INT64} == {dtype}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {FLOAT}


@pytest.mark.parametrize(
    ("middle", "expected"),
    [({"b": "fp16"}, {HALF: 1, FLOAT: 1}), ({"a": "fp16", "b": "fp16"}, {HALF: 1, FLOAT: 1}), ({}, {})],
)
def test_casts_stand_at_the_borders_of_a_region(middle: dict[str, str], expected: dict[int, int]) -> None:
    assert casts(typed(chain(), schemes(chain(), "fp32", **middle))) == expected


def test_regions_of_two_types_meet_without_a_detour() -> None:
    model = typed(chain(), schemes(chain(), "fp32", a="fp16", b="bf16"))
    assert casts(model) == {HALF: 1, BRAIN: 1, FLOAT: 1}


def test_half_precision_passes_the_checker_and_computes_the_same() -> None:
    config = schemes(residual(), "fp16", left="fp32")
    model = typed(residual(), config)
    onnx.checker.check_model(model, full_check=True)
    (have,), (want,) = (
        run(IMAGES).values() for run in (reference_run(model.SerializeToString()), ort_run(serialize(residual().model)))
    )
    assert have.dtype == np.float32
    np.testing.assert_allclose(have, want, atol=5e-3)
    assert np.abs(have - want).max() > 0


def test_a_value_is_cast_once_for_all_its_readers() -> None:
    net = Net(4, 8, 8)
    outputs = [net.conv("x", 4, name) for name in ("a", "b")]
    graph = net.graph(*outputs, example=EXAMPLE, ranks=[4, 4])
    assert casts(typed(graph, schemes(graph, "bf16"))) == {BRAIN: 1, FLOAT: 2}


def test_ops_between_layers_follow_them_and_else_the_rest() -> None:
    net = Net(4, 8, 8)
    first = net.op("Relu", net.op("Tanh", net.conv("x", 4, "a"), name="in1"), name="in2")
    second = net.op("Relu", net.op("Tanh", net.conv(first, 4, "b"), name="out1"), name="out2")
    graph = net.graph(net.conv(second, 4, "c"), example=EXAMPLE, ranks=[4])
    config = schemes(graph, "bf16", c="fp32")
    for rest in (Precision.FP32, Precision.BF16):
        types = float_types(graph.model, config.model_copy(update={"rest": rest}))
        assert types["in1"] == types["in2"] == "bf16"
        assert types["out1"] == types["out2"] == rest


@pytest.mark.parametrize("rest", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("own", ["bf16", "fp32", "int8"])
def test_what_adds_a_bias_or_scales_has_its_layers_type(own: str, rest: Precision) -> None:
    net = Net(6, 16)
    product = net.op("MatMul", "x", net.weight("w", 16, 16), name="layer")
    added = net.op("Add", product, net.weight("b", 16), name="bias")
    scaled = net.op("Div", added, net.constant("four", np.array(4, np.float32)), name="scale")
    shifted = net.op("Add", net.op("Tanh", scaled, name="between"), net.weight("c", 16), name="behind")
    output = net.op("MatMul", shifted, net.weight("v", 16, 16), name="other")
    graph = net.graph(output, example={"x": np.ones((2, 6, 16), np.float32)}, ranks=[3])
    types = float_types(graph.model, schemes(graph, own, other=rest).model_copy(update={"rest": rest}))
    assert {types[name] for name in ("layer", "bias", "scale")} == {"fp32" if own == "int8" else own}
    assert types["between"] == types["behind"] == rest


def test_resizing_stays_in_float32() -> None:
    net = Net(4, 8, 8)
    scales = net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    resized = net.op("Resize", net.conv("x", 4, "a"), "", scales, name="resized", mode="linear")
    graph = net.graph(net.conv(resized, 4, "b"), example=EXAMPLE, ranks=[4])
    model = typed(graph, schemes(graph, "fp16"))
    onnx.checker.check_model(model, full_check=True)
    assert float_types(graph.model, schemes(graph, "fp16"))["resized"] is Precision.FP32
    assert casts(model) == {HALF: 2, FLOAT: 2}


def test_constants_beyond_the_types_range_stay_finite() -> None:
    net = Net(4, 8, 8)
    mask = net.constant("mask", np.array([-1e9, 1e9] * 4, np.float32))
    graph = net.graph(net.conv(net.op("Add", net.conv("x", 4, "a"), mask), 4, "b"), example=EXAMPLE, ranks=[4])
    model = typed(graph, schemes(graph, "fp16"))
    (stored,) = [numpy_helper.to_array(value) for value in model.graph.initializer if value.name.startswith("mask")]
    assert set(stored.tolist()) == {-65504.0, 65504.0}


def test_layers_that_share_a_weight_keep_their_own_types() -> None:
    graph = tied()
    model = typed(graph, schemes(graph, "fp32", a="fp16"))
    assert sorted(value.data_type for value in model.graph.initializer if "shared" in value.name) == [FLOAT, HALF]
    onnx.checker.check_model(model, full_check=True)


def test_weights_alone_are_stored_in_the_type_where_the_runtime_does_the_rest() -> None:
    graph = tied()
    plan = make_plan(graph, [], get_runtime("openvino").placement)
    lowered = lower(graph, schemes(graph, "bf16"), plan, Parameters(), typed=False)
    model = onnx.load_model_from_string(serialize(lowered))
    onnx.checker.check_model(model, full_check=True)  # above all that nodes stand in order
    assert [node.name for node in lowered.graph if node.op_type == "Conv"] == ["z", "a"]
    assert casts(model) == {FLOAT: 3}  # of the weight, and of a bias each
    assert {value.dtype for value in lowered.graph.initializers.values()} == {ir.DataType.BFLOAT16}
    (have,), (want,) = (reference_run(serialize(m))(EXAMPLE).values() for m in (lowered, graph.model))
    np.testing.assert_allclose(have, want, atol=0.02 * float(np.abs(want).max()))


def tied() -> Graph:
    """Two convolutions, z then a, with one weight."""
    net = Net(4, 8, 8)
    weight = net.weight("shared", 4, 4, 1, 1)
    output = net.op("Conv", net.op("Conv", "x", weight, name="z"), weight, name="a")
    return net.graph(output, example=EXAMPLE, ranks=[4])
