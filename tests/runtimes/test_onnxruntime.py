"""What is particular to ONNX Runtime: quirks that its placement and options answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mixq.config import LayerScheme, Precision
from mixq.graph import Graph, serialize
from mixq.graph.capture import relative_error
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import Net, images, lowered, ops, ort_run, residual, schemes

ORT = get_runtime("onnxruntime")
EXAMPLE = images(16, 8)


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
def test_16_bit_floats_are_refused(precision: Precision) -> None:
    assert "CPU provider" in str(ORT.float_refusal(precision))


def test_transposed_convolutions_have_no_integer_kernel() -> None:
    net = Net(8, 8, 8)
    (layer,) = net.graph(net.op("ConvTranspose", "x", net.weight("w", 8, 8, 3, 3)), example=EXAMPLE, ranks=[4]).layers
    assert "ConvTranspose" in str(ORT.refusal(LayerScheme(precision=Precision.INT8), layer))


def test_only_mixes_need_an_option() -> None:
    for config in (schemes(residual(), "fp32"), schemes(residual(), "int8")):
        assert ORT.options(config) == {}
    assert list(ORT.options(schemes(residual(), "int8", head="fp32"))) == ["optimization.disable_specified_optimizers"]


def test_float_layers_between_int8_layers_stay_float() -> None:
    """Without the option ONNX Runtime 1.31 runs such a layer INT8; once it does not, the option can go."""
    net = Net(8, 8, 8)
    graph = net.graph(net.conv(net.conv(net.conv("x", 8, "a"), 8, "b"), 8, "c"), example=images(3, 8), ranks=[4])
    model = lowered(graph, schemes(graph, "int8", b="fp32"), ORT, EXAMPLE)
    assert model.executed(EXAMPLE) == {"a": "int8", "b": "fp32", "c": "int8"}
    plain = {
        kernel.layer: kernel.executed for kernel in ORT.compile(model.model, 1).audit(graph.layers, EXAMPLE).kernels
    }
    assert plain["b"] == "int8"


def test_pooling_behind_a_float_layer_stays_in_front_of_the_pair(tmp_path: Path) -> None:
    """Without the option ONNX Runtime 1.31 moves the pair up again."""
    net = Net(8, 8, 8)
    pool = net.op("MaxPool", net.conv("x", 8, "a"), kernel_shape=[2, 2], strides=[2, 2])
    graph = net.graph(net.conv(pool, 8, "b"), example=images(3, 8), ranks=[4])
    config = schemes(graph, "int8", a="fp32")
    model = lowered(graph, config, ORT, EXAMPLE).model
    for options, pooled_first in ((ORT.options(config), True), ({}, False)):
        found = optimized(model, options, tmp_path / "optimized.onnx")
        assert (found.index("MaxPool") < found.index("QuantizeLinear")) == pooled_first


def optimized(model: bytes, entries: Mapping[str, str], path: Path) -> list[str]:
    """Op types of what ONNX Runtime makes of `model`, in order."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return ops(onnx.load(path))


def activated(activation: str, kind: str) -> Graph:
    """A layer, an activation, a second layer."""
    net = Net(8, 8, 8)
    if kind == "conv":
        return net.graph(
            net.conv(_activation(net, activation, net.conv("x", 8, "a")), 4, "b"), example=EXAMPLE, ranks=[4]
        )
    if kind == "gemm":
        first = _activation(net, activation, net.gemm(net.pooled("x"), 8, 8, "a"))
        return net.graph(net.gemm(first, 8, 4, "b"), example=EXAMPLE)
    added = net.op("Add", net.op("MatMul", "x", net.weight("w", 8, 8), name="a"), net.weight("bias", 8))
    last = net.op("MatMul", _activation(net, activation, added), net.weight("v", 8, 8), name="b")
    return net.graph(last, example=EXAMPLE, ranks=[4])


def _activation(net: Net, activation: str, x: str) -> str:
    if activation == "Clip":
        return net.op("Clip", x, net.constant("low", np.float32(0)), net.constant("high", np.float32(6)))
    return net.op(activation, x)


ACTIVATIONS = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "Softplus",
    "Gelu",
    "Erf",
)


@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_activation_keeps_a_layer_from_its_integer_kernel(activation: str, kind: str) -> None:
    graph = activated(activation, kind)
    for config in (schemes(graph, "int8"), schemes(graph, "int8", b="fp32"), schemes(graph, "int8", a="fp32")):
        model = lowered(graph, config, ORT, EXAMPLE)
        assert model.executed(EXAMPLE) == {name: str(scheme.precision) for name, scheme in config.schemes.items()}
        (want,), (have,) = (run(EXAMPLE).values() for run in (ort_run(serialize(graph.model)), model.executable.run))
        assert relative_error(want, have) < 0.03


@pytest.mark.parametrize("size", [(8,), (8, 6), (8, 6, 4)], ids=["1d", "2d", "3d"])
def test_convolutions_of_any_rank(size: tuple[int, ...]) -> None:
    net = Net(4, *size)
    kernel = [3] * len(size)
    first = net.op("Conv", "x", net.weight("w", 8, 4, *kernel), name="a")
    last = net.op("Conv", net.op("Relu", first), net.weight("v", 8, 1, *[1] * len(size)), name="b", group=8)
    inputs: dict[str, Array] = {"x": np.random.default_rng(0).normal(size=(4, 4, *size)).astype(np.float32)}
    graph = net.graph(last, example=inputs, ranks=[2 + len(size)])
    assert lowered(graph, schemes(graph, "int8"), ORT, inputs).executed(inputs) == {"a": "int8", "b": "int8"}
