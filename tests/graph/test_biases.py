"""Layers without a bias get one of zeros; what the network computes, and every other node, stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from mixq.graph import serialize
from mixq.graph.biases import add_missing_biases
from tests.helpers import Net, images, ort_run

EXAMPLE = images(2, 6)

BARE: dict[str, tuple[Callable[[Net], str], int]] = {  # and the channels of the output
    "conv": (lambda net: net.op("Conv", "x", net.weight("w", 9, 2, 3, 3), name="bare", group=3), 9),
    "transposed": (lambda net: net.op("ConvTranspose", "x", net.weight("w", 6, 5, 2, 2), name="bare"), 5),
    "transposed groups": (
        lambda net: net.op("ConvTranspose", "x", net.weight("w", 6, 5, 2, 2), name="bare", group=3),
        15,
    ),
    "gemm": (lambda net: net.op("Gemm", net.pooled("x"), net.weight("w", 6, 7), name="bare", alpha=0.5), 7),
    "gemm transposed": (lambda net: net.op("Gemm", net.pooled("x"), net.weight("w", 7, 6), name="bare", transB=1), 7),
    "empty input": (lambda net: net.op("Conv", "x", net.weight("w", 9, 6, 1, 1), "", name="bare"), 9),
}


@pytest.mark.parametrize("case", BARE)
def test_each_kind_of_layer_gets_a_bias_of_zeros(case: str) -> None:
    build, channels = BARE[case]
    net = Net(6, 8, 8)
    output = build(net)
    model = net.model(output, ranks=[2 if "gemm" in case else 4])
    graph = net.graph(output, example=EXAMPLE, ranks=[2 if "gemm" in case else 4])
    np.testing.assert_array_equal(graph.weight(str(graph.by_name["bare"].bias)), np.zeros(channels, np.float32))
    (have,), (want,) = (ort_run(m)(EXAMPLE).values() for m in (serialize(graph.model), model.SerializeToString()))
    np.testing.assert_allclose(have, want, atol=1e-5)


def test_each_layer_has_a_bias_of_its_own() -> None:
    net = Net(6, 8, 8)
    weight = net.weight("shared", 6, 6, 1, 1)
    output = net.op("Conv", net.op("Conv", "x", weight, name="first"), weight, name="second")
    graph = net.graph(output, example=EXAMPLE, ranks=[4])
    first, second = (graph.by_name[name].bias for name in ("first", "second"))
    assert None not in (first, second)
    assert first != second


def test_says_whether_one_was_missing() -> None:
    net = Net(6, 8, 8)
    model = ir.from_proto(net.model(net.op("Conv", "x", net.weight("w", 9, 6, 1, 1), name="bare"), ranks=[4]))
    assert add_missing_biases(model)
    done = serialize(model)
    assert not add_missing_biases(model)
    assert serialize(model) == done


def test_others_are_left_alone() -> None:
    """A bias that is there, of whatever kind; a MatMul, which takes none; a product of two activations."""
    net = Net(6, 8, 8)
    pooled = net.pooled(net.conv("x", 6))
    gemm = net.op("Gemm", pooled, net.weight("g", 6, 7), net.weight("scalar", 1))
    matmul = net.op("MatMul", pooled, net.weight("m", 6, 7))
    model = ir.from_proto(net.model(gemm, matmul, net.op("Gemm", pooled, pooled, transB=1), ranks=[2, 2, 2]))
    before = serialize(model)
    assert not add_missing_biases(model)
    assert serialize(model) == before
