"""A network with what SmoothQuant is for."""

from __future__ import annotations

import numpy as np

from mixq.graph import Graph
from tests.helpers import Net

TOKENS = {"x": np.random.default_rng(0).normal(size=(64, 8, 32)).astype(np.float32)}


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
