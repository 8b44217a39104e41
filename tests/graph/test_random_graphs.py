"""Random graphs, random precisions: whatever the mix, the lowered model is valid, agrees, and runs INT8 as asked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mixq.config import MixedPrecisionConfig
from mixq.graph import Graph
from mixq.graph.capture import relative_error
from mixq.runtimes import get_runtime
from tests.helpers import Net, images, lowered, reference_run, schemes

CHANNELS = 8
PHASES = (Phase.generate, Phase.shrink)
FLOATS = {"openvino": ("fp32", "bf16", "fp16"), "onnxruntime": ("fp32",)}
# Runtime and reference round to the same codes but for ties and the order of summation: a step here or there, 1/255 of
# a tensor's range. Of BF16's 8 bits the reference loses more, since it sums up in it.
BOUND, BRAIN_BOUND = 0.02, 0.08


def _clip(net: Net, x: str, y: str) -> str:
    low = net.constant(f"low{len(net.nodes)}", np.float32(0))
    return net.op("Clip", x, low, net.constant(f"high{len(net.nodes)}", np.float32(1.5)))


def _pad(net: Net, x: str, y: str) -> str:
    pads = net.constant(f"pads{len(net.nodes)}", np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
    padded = net.op("Pad", x, pads)
    net.channels[padded] = net.channels[x] + 4
    return net.conv(padded, CHANNELS, kernel=1)


def _window(net: Net, op: str, x: str) -> str:
    return net.op(op, x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])


# Each makes a tensor from x, the last one, and y, any one; all have the same shape.
OPS: dict[str, Callable[[Net, str, str], str]] = {
    "conv": lambda net, x, y: net.conv(x, CHANNELS),
    "depthwise": lambda net, x, y: net.conv(x, CHANNELS, groups=CHANNELS),
    "relu": lambda net, x, y: net.op("Relu", x),
    "clip": _clip,
    "leaky": lambda net, x, y: net.op("LeakyRelu", x, alpha=0.1),
    "sigmoid": lambda net, x, y: net.op("Sigmoid", x),
    "maxpool": lambda net, x, y: _window(net, "MaxPool", x),
    "avgpool": lambda net, x, y: _window(net, "AveragePool", x),
    "concat": lambda net, x, y: net.conv(net.op("Concat", x, y, axis=1), CHANNELS),
    "add": lambda net, x, y: net.op("Add", x, y),
    "gate": lambda net, x, y: net.op("Mul", x, net.op("Sigmoid", y)),  # squares of squares would leave FP16's range
    "pad": _pad,
}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """3 to 9 ops, each on tensors made before it; then pooling and a linear layer or two."""
    net = Net(CHANNELS, 8, 8, seed=draw(st.integers(0, 1000)))
    made = [net.conv("x", CHANNELS)]
    for op in draw(st.lists(st.sampled_from(list(OPS)), min_size=2, max_size=8)):
        x, y = made[-1], draw(st.sampled_from(made))
        made.append(OPS[op](net, x, y))
    last = net.gemm(net.pooled(made[-1]), net.channels[made[-1]], 6)
    if draw(st.booleans()):
        last = net.gemm(net.op("Relu", last), 6, 4)
    return net.graph(last, example=images(3, CHANNELS))


@st.composite
def configurations(draw: st.DrawFn, floats: tuple[str, ...]) -> tuple[Graph, MixedPrecisionConfig]:
    graph = draw(graphs())
    chosen = {name: draw(st.sampled_from(("int8", "int8", *floats))) for name in graph.layer_names}
    return graph, schemes(graph, "fp32", **chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOATS)
def test_any_mix_of_any_graph(name: str) -> None:
    runtime = get_runtime(name)

    @settings(max_examples=25, phases=PHASES)
    @given(configurations(FLOATS[name]))
    def check(drawn: tuple[Graph, MixedPrecisionConfig]) -> None:
        graph, config = drawn
        model = lowered(graph, config, runtime, images(16, CHANNELS))
        # Conv takes bfloat16 from opset 22 on by the letter of the standard; OpenVINO does at 21 too.
        onnx.checker.check_model(model.proto, full_check="bf16" not in config.counts())
        inputs = images(4, CHANNELS, seed=1)
        (have,), (exact,) = model.executable.run(inputs).values(), reference_run(model.model)(inputs).values()
        assert relative_error(exact, have) < (BRAIN_BOUND if "bf16" in config.counts() else BOUND)
        for layer, precision in model.executed(inputs).items():
            assert (precision == "int8") == (config.schemes[layer].precision == "int8"), layer

    check()
