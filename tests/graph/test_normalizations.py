"""Batch normalizations behind an activation belong to the layer before it."""

from __future__ import annotations

import numpy as np

from mixq.graph import Graph
from mixq.graph.normalizations import normalizations
from tests.helpers import Net, images


def normalized(*, between: str = "Relu", shared: bool = False) -> Graph:
    """first → an activation → norm → second → Relu → last, where `shared` lets both normalizations have one γ."""
    net = Net(3, 8, 8)
    x = net.op(between, net.conv("x", 4, name="first"))
    for name in ("norm", "other"):
        parts = ["gamma" if shared and part == "gamma" else f"{name}.{part}" for part in ("gamma", "beta")]
        for part in parts:
            if part not in {tensor.name for tensor in net.initializers}:
                net.constant(part, net.random.uniform(0.5, 1.5, 4).astype(np.float32))
        mean = net.constant(f"{name}.mean", net.random.normal(size=4).astype(np.float32))
        variance = net.constant(f"{name}.variance", net.random.uniform(0.5, 2, 4).astype(np.float32))
        x = net.op("BatchNormalization", x, *parts, mean, variance, name=name)
        x = net.op("Relu", net.conv(x, 4, name=f"behind_{name}"))
    net.gemm(net.pooled(x), 4, 5, name="y")
    return net.graph("y", example=images(3))


def test_a_normalization_behind_an_activation_is_the_layers() -> None:
    assert normalizations(normalized()) == {"first": ("norm",), "behind_norm": ("other",)}


def test_behind_anything_else_it_is_nobodys() -> None:
    assert normalizations(normalized(between="GlobalMaxPool")) == {"behind_norm": ("other",)}


def test_a_factor_that_two_share_is_left_alone() -> None:
    assert normalizations(normalized(shared=True)) == {}
