"""Networks whose channels want scales that nothing else in them has."""

from __future__ import annotations

import numpy as np

from mixq.graph import Graph
from tests.helpers import Net

TOKENS = {"x": np.random.default_rng(0).normal(size=(64, 8, 32)).astype(np.float32)}


IMAGES = {"x": np.random.default_rng(0).normal(size=(32, 4, 8, 8)).astype(np.float32)}


def opposed_stream() -> Graph:
    """A stream of residuals whose channels are small and large where the first depthwise layer reads it, and the other
    way about where the second does. What they give is brought back to one size."""
    net, small = Net(4, 8, 8), np.array([1 / 64] * 3 + [1] * 3, np.float32)[:, None, None]
    factors = [net.constant("small", small), net.constant("large", 1 / small)]
    stem = net.op("Mul", net.op("Relu", net.conv("x", 6, "stem")), factors[0], name="start")
    first = net.op("Mul", net.conv(stem, 6, "first", groups=6), factors[1], name="even")
    grown = net.op("Mul", net.conv(net.op("Relu", first), 6, "wide"), factors[1], name="grown")
    second = net.conv(net.op("Add", stem, grown, name="stream"), 6, "second", groups=6)
    last = net.conv(net.op("Mul", second, factors[0], name="even too"), 4, "last")
    return net.graph(last, example=IMAGES, ranks=[4])


def attention_inputs(*, residual: bool) -> Graph:
    """A normalization with two channels far beyond the others, three matrices behind it and, or not, a residual."""
    net, scale = Net(8, 32), np.ones(32, np.float32)
    scale[[3, 17]] = 60
    normal = net.op("LayerNormalization", "x", net.constant("s", scale), net.weight("b", 32), name="norm", axis=-1)
    names = [net.op("MatMul", normal, net.weight(f"{name}.weight", 32, 32), name=name) for name in "qkv"]
    names.append(net.op("MatMul", net.op("Relu", names[0]), net.weight("up.weight", 32, 32), name="up"))
    if residual:
        names[3] = net.op("Add", normal, names[3], name="sum")
    return net.graph(*names[1:], example=TOKENS, ranks=[3] * 3)
