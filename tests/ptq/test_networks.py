"""The walk through a network gives each layer what running the whole network gives it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mixq.graph import Graph
from mixq.ptq import Material, Prepared, Quantizer, networks
from mixq.ptq.networks import Walk, float_inputs, int8_inputs
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import CALIBRATE, Net, images, ort_run, residual


@cache
def branches() -> Graph:
    """Two branches into a Concat, pooled and cut behind it; a residual addition around the last layer."""
    net = Net(4, 8, 8)
    stem = net.op("Relu", net.conv("x", 4, "stem"))
    both = net.op("Concat", net.op("Relu", net.conv(stem, 4, "left")), net.conv(stem, 4, "right"), axis=1)
    pooled = net.op("MaxPool", both, kernel_shape=[2, 2], strides=[2, 2])
    added = net.op("Add", net.conv(pooled, 8, "last"), pooled)
    return net.graph(net.gemm(net.pooled(net.op("Relu", added)), 8, 3, "head"), example=images(3, 4))


def material(graph: Graph, runtime: str) -> Material:
    name = str(graph.model.graph.inputs[0].name)
    channels = 4 if name == "x" else 3
    batches = [images(5, channels, seed=seed, name=name) for seed in (0, 1)]
    return Material(batches, ort_run, get_runtime(runtime).placement)


def assert_the_walk_sees_what_whole_runs_do(graph: Graph, found: Material) -> None:
    prepared: Prepared = Quantizer(graph, found).prepared(CALIBRATE)
    exact, quantized = float_inputs(graph, found, graph.layers), int8_inputs(prepared, found, graph.layers)
    wanted = [(exact(batch), quantized(batch)) for batch in found.batches]
    walk = Walk(graph, found)
    for layer in graph.layers:
        for (x, q), (want_x, want_q) in zip(walk.inputs(prepared, layer), wanted, strict=True):
            np.testing.assert_allclose(x, want_x[layer.name], atol=1e-5)
            step = float(np.ptp(want_q[layer.name])) / 255
            assert np.abs(q - want_q[layer.name]).max() <= 1.01 * step  # at a tie, another kernel rounds the other way
            assert np.abs(q - want_q[layer.name]).mean() <= 0.01 * step


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize("graph", [residual, branches], ids=["residual", "branches"])
def test_layer_by_layer_is_as_all_at_once(graph: object, runtime: str) -> None:
    found = residual() if graph is residual else branches()
    assert_the_walk_sees_what_whole_runs_do(found, material(found, runtime))


def test_a_walk_that_may_keep_nothing_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "MOST_BYTES", 0)
    assert_the_walk_sees_what_whole_runs_do(branches(), material(branches(), "onnxruntime"))
