"""Lowering: the model that is written is valid, small, and computes what its pairs say on every runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixq import affine
from mixq.affine import QParams
from mixq.config import Precision
from mixq.graph import Graph, serialize
from mixq.graph.capture import relative_error
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.graph.quantize import Parameters
from mixq.runtimes import NAMES, Runtime, get_runtime
from mixq.task import Array, Outputs
from tests.helpers import Net, images, lowered, ops, ort_run, quantized, reference_run, residual, schemes

IMAGES = images(16, name="image")
FEW = images(4, seed=1, name="image")
ORT = get_runtime("onnxruntime")

runtimes = pytest.mark.parametrize("runtime", [get_runtime(name) for name in NAMES], ids=NAMES)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}


def only(outputs: Outputs) -> Array:
    (value,) = outputs.values()
    return value


@runtimes
@pytest.mark.parametrize("kept", [{}, {"stem": "fp32"}, {"left": "fp32"}, {"right": "fp32"}, {"head": "fp32"}])
def test_int8_agrees_with_the_reference_evaluator(runtime: Runtime, kept: dict[str, str]) -> None:
    config = schemes(residual(), "int8", **kept)
    model = lowered(residual(), config, runtime, IMAGES)
    onnx.checker.check_model(model.proto, full_check=True)
    assert relative_error(only(reference_run(model.model)(FEW)), only(model.executable.run(FEW))) < 1e-2
    executed = model.executed(FEW)
    assert {name for name, found in executed.items() if found == "int8"} == set(config.layers_with(Precision.INT8))


@runtimes
def test_one_layer_is_right_to_a_step(runtime: Runtime) -> None:
    net = Net(4, 8, 8)
    graph = net.graph(net.op("Relu", net.conv("x", 6)), example=images(3, 4), ranks=[4])
    model = lowered(graph, schemes(graph, "int8"), runtime, images(16, 4))
    want, have = only(reference_run(model.model)(images(4, 4))), only(model.executable.run(images(4, 4)))
    assert np.abs(want - have).max() <= want.max() / 255 + 1e-6
    assert relative_error(only(ort_run(serialize(graph.model))(images(4, 4))), have) < 0.02


def test_weights_are_stored_in_a_quarter() -> None:
    net = Net(64, 8, 8)
    graph = net.graph(net.conv(net.conv("x", 64), 64), example=images(3, 64), ranks=[4])
    small = lowered(graph, schemes(graph, "int8"), ORT, images(3, 64)).model
    assert 0.25 < len(small) / len(serialize(graph.model)) < 0.29


def test_lowering_leaves_the_graph_as_it_is() -> None:
    before = serialize(residual().model)
    lowered(residual(), schemes(residual(), "int8", head="fp32"), ORT, IMAGES)
    assert serialize(residual().model) == before


def test_the_stored_integers_are_affines() -> None:
    model = lowered(residual(), schemes(residual(), "int8"), ORT, IMAGES)
    found, layer = constants(model.proto), residual().layer("left")
    scale = found["left.weight_scale"]
    weight = residual().weight(layer.weight)
    qparams = QParams(scale, np.zeros(8, np.int32), 0)
    np.testing.assert_array_equal(found["left.weight_quantized"], affine.quantize(weight, qparams, affine.S8))
    (data,) = [node.input[1] for node in model.proto.graph.node if node.output[0] == _input(model.proto, "left")]
    np.testing.assert_allclose(found["left.bias_scale"], found[data] * scale, rtol=1e-6)
    back = affine.dequantize(found["left.bias_quantized"], QParams(found["left.bias_scale"], np.zeros(8, np.int32), 0))
    np.testing.assert_allclose(back, residual().weight(str(layer.bias)), atol=found["left.bias_scale"].max())


def _input(model: onnx.ModelProto, name: str) -> str:
    (node,) = [node for node in model.graph.node if node.name == name]
    return str(node.input[0])


def test_scales_of_tensors_are_scalars() -> None:
    """ONNX Runtime's integer ops refuse a scale of shape (1,)."""
    found = constants(lowered(residual(), schemes(residual(), "int8"), ORT, IMAGES).proto)
    pairs = [value for name, value in found.items() if name.endswith(("_scale", "_zero_point")) and "." not in name]
    assert pairs
    assert all(value.shape == () for value in pairs)


def test_layers_that_share_a_weight_keep_their_own_precision() -> None:
    net = Net(4, 8, 8)
    weight = net.weight("shared", 4, 4, 1, 1)
    output = net.op("Conv", net.op("Conv", "x", weight, name="first"), weight, name="second")
    graph = net.graph(output, example=images(3, 4), ranks=[4])
    model = lowered(graph, schemes(graph, "int8", second="fp32"), ORT, images(8, 4))
    found = constants(model.proto)
    assert found["first.weight_quantized"].dtype == np.int8
    assert found["shared"].dtype == np.float32
    assert model.executed(images(2, 4)) == {"first": "int8", "second": "fp32"}


def test_values_replace_the_graphs_own() -> None:
    graph = residual()
    config = schemes(graph, "int8", left="fp32", stem="fp32", head="fp32")
    plan = make_plan(graph, ["right"], ORT.placement)
    parameters = quantized(graph, config, plan, ORT, IMAGES)
    values = {("right", 1): np.zeros((8, 8, 3, 3), np.float32), ("left", 2): np.full(8, 3.0, np.float32)}
    changed = Parameters(parameters.activations, parameters.weights, values)
    found = constants(onnx.load_model_from_string(serialize(lower(graph, config, plan, changed))))
    assert not found["right.weight_quantized"].any()
    np.testing.assert_array_equal(found["left.bias.own"], values["left", 2])


@runtimes
def test_trainable_layers_compute_the_same_with_float_weights(runtime: Runtime) -> None:
    graph, config = residual(), schemes(residual(), "int8", head="fp32")
    plan = make_plan(graph, config.layers_with(Precision.INT8), runtime.placement)
    parameters = quantized(graph, config, plan, runtime, IMAGES)
    frozen = serialize(lower(graph, config, plan, parameters))
    training = serialize(lower(graph, config, plan, parameters, trainable=["left", "right"]))
    found = constants(onnx.load_model_from_string(training))
    assert found["left.weight.own"].dtype == np.float32
    assert "stem.weight_quantized" in found
    want, have = (only(reference_run(model)(FEW)) for model in (frozen, training))
    np.testing.assert_allclose(have, want, atol=0.01 * float(np.abs(want).max()))  # biases are not rounded


@runtimes
def test_dead_channels_and_constant_tensors_are_survived(runtime: Runtime) -> None:
    net = Net(4, 8, 8)
    dead = net.op("Mul", "x", net.constant("zero", np.float32(0)))
    first = net.conv(dead, 4, "first")
    weight = numpy_helper.to_array(net.initializers[1]).copy()
    weight[:2] = 0
    net.initializers[1] = numpy_helper.from_array(weight, "first.weight")
    graph = net.graph(net.conv(net.op("Relu", first), 4, "second"), example=images(3, 4), ranks=[4])
    model = lowered(graph, schemes(graph, "int8"), runtime, images(8, 4))
    want = only(ort_run(serialize(graph.model))(images(8, 4)))
    assert relative_error(want, only(model.executable.run(images(8, 4)))) < 0.02


@runtimes
def test_a_bias_that_dwarfs_the_weights_does_not_overflow(runtime: Runtime) -> None:
    net = Net(4, 8, 8)
    net.op("Conv", "x", net.weight("w", 4, 4, 1, 1), net.constant("b", np.full(4, 50, np.float32)), name="c")
    net.initializers[0] = numpy_helper.from_array(np.full((4, 4, 1, 1), 1e-9, np.float32), "w")
    graph = net.graph("c", example=images(3, 4), ranks=[4])
    model = lowered(graph, schemes(graph, "int8"), runtime, images(8, 4))
    np.testing.assert_allclose(only(model.executable.run(images(2, 4))), 50, rtol=0.01)


def shortcut() -> Graph:
    """A residual block whose shortcut is cut and padded, with a batch norm behind a ReLU."""
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"))
    statistics = [net.constant(f"bn{i}", np.linspace(0.5, 2, 4).astype(np.float32)) for i in range(4)]
    normal = net.op("BatchNormalization", relu, *statistics, name="norm")
    ends = [net.constant(f"cut{i}", np.array(v, np.int64)) for i, v in enumerate(([0, 0], [8, 8], [2, 3], [2, 2]))]
    pads = net.constant("pads", np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
    skip = net.op("Pad", net.op("Slice", normal, *ends, name="slice"), pads, name="pad")
    added = net.op("Add", net.conv(normal, 8, "second", strides=[2, 2]), skip, name="sum")
    return net.graph(net.conv(added, 4, "third"), example=images(3, 4), ranks=[4])


def test_batch_norm_and_padding_run_on_codes_on_onnxruntime() -> None:
    model = lowered(shortcut(), schemes(shortcut(), "int8"), ORT, images(16, 4))
    onnx.checker.check_model(model.proto, full_check=True)
    found = ops(model.proto)
    assert "BatchNormalization" not in found
    (pad,) = [node for node in model.proto.graph.node if node.op_type == "Pad"]
    assert pad.input[2] in {name for name, value in constants(model.proto).items() if value.dtype == np.uint8}
    inputs = images(16, 4)
    have = only(model.executable.run(inputs))
    assert relative_error(only(reference_run(model.model)(inputs)), have) < 0.01
    assert relative_error(only(ort_run(serialize(shortcut().model))(inputs)), have) < 0.03


@runtimes
def test_the_rewritten_ops_change_nothing_where_they_stay_float(runtime: Runtime) -> None:
    model = lowered(shortcut(), schemes(shortcut(), "fp32", third="int8"), runtime, images(16, 4))
    assert "BatchNormalization" in ops(model.proto)
    inputs = images(16, 4)
    want, have = only(ort_run(serialize(shortcut().model))(inputs)), only(model.executable.run(inputs))
    assert relative_error(want, have) < 0.02


def test_transposed_convolutions_in_groups_share_scales() -> None:
    net = Net(4, 8, 8)
    weight, bias = net.weight("w", 4, 3, 2, 2), net.weight("b", 6)
    graph = net.graph(net.op("ConvTranspose", "x", weight, bias, group=2, name="up"), example=images(3, 4), ranks=[4])
    model = lowered(graph, schemes(graph, "int8"), get_runtime("openvino"), images(8, 4))
    onnx.checker.check_model(model.proto, full_check=True)
    want = only(ort_run(serialize(graph.model))(images(2, 4)))
    assert relative_error(want, only(model.executable.run(images(2, 4)))) < 0.02


def test_every_output_keeps_its_name_and_order() -> None:
    net = Net(4, 8, 8)
    first = net.op("Relu", net.conv("x", 4, "first"), name="b")
    graph = net.graph(first, net.conv(first, 4, "a"), example=images(3, 4), ranks=[4, 4])
    for config in (schemes(graph, "int8"), schemes(graph, "fp32")):
        assert list(lowered(graph, config, ORT, images(4, 4)).executable.run(images(2, 4))) == ["b", "a"]
