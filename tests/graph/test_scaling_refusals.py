"""No scale group where a factor would not pass, or where something else reads, writes or shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixq.graph.layers import row_shapes
from mixq.graph.scaling import find_scale_groups
from tests.helpers import Net, images


def sigmoid_between(net: Net) -> list[str]:
    return [net.conv(net.op("Sigmoid", net.conv("x", 4, "first")), 4, "second")]


def also_an_output(net: Net) -> list[str]:
    relu = net.op("Relu", net.conv("x", 4, "first"))
    return [net.conv(relu, 4, "second"), relu]


def read_by_another_op(net: Net) -> list[str]:
    relu = net.op("Relu", net.conv("x", 4, "first"))
    return [net.op("Mul", net.conv(relu, 4, "second"), net.op("Sigmoid", relu))]


def shared_weight(net: Net) -> list[str]:
    weight = net.weight("shared", 4, 4, 1, 1)
    return [net.op("Conv", net.op("Relu", net.op("Conv", "x", weight, name="first")), weight, name="second")]


def shared_bias(net: Net) -> list[str]:
    bias = net.weight("shared", 4)
    first = net.op("Conv", "x", net.weight("a", 4, 4, 1, 1), bias, name="first")
    return [net.op("Sigmoid", net.op("Conv", first, net.weight("b", 4, 4, 1, 1), bias, name="second"))]


def concatenation(net: Net) -> list[str]:
    both = net.op("Concat", net.conv("x", 2, "first"), net.conv("x", 2, "other"), axis=1)
    return [net.conv(both, 4, "second")]


def input_added(net: Net) -> list[str]:
    return [net.conv(net.op("Add", net.conv("x", 4, "first"), "x"), 4, "second")]


def input_alone(net: Net) -> list[str]:
    return [net.conv(net.op("Relu", "x"), 4, "second")]


def constant_added(net: Net) -> list[str]:
    return [net.conv(net.op("Add", net.conv("x", 4, "first"), net.weight("c", 4, 1, 1)), 4, "second")]


def broadcast_added(net: Net) -> list[str]:
    first = net.conv("x", 4, "first")
    return [net.conv(net.op("Add", first, net.op("GlobalAveragePool", first)), 4, "second")]


def padded_with_ones(net: Net) -> list[str]:
    pads = net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    return [net.conv(net.op("Pad", net.conv("x", 4, "first"), pads, net.constant("one", np.float32(1))), 4, "second")]


def flattened_positions(net: Net) -> list[str]:
    return [
        net.op(
            "Reshape", net.gemm(net.op("Flatten", net.conv("x", 2, "first")), 128, 5), net.constant("s", [-1, 5, 1, 1])
        )
    ]


def other_axis(net: Net) -> list[str]:
    return [net.op("MatMul", net.op("Relu", net.conv("x", 4, "first")), net.weight("w", 8, 8), name="second")]


def weight_read_as_data(net: Net) -> list[str]:
    relu = net.op("Relu", net.conv("x", 4, "first"))
    return [net.op("MatMul", relu, relu)]


def channels_added(net: Net) -> list[str]:
    pads = net.constant("pads", np.array([0, 2, 0, 0, 0, 0, 0, 0], np.int64))
    wide = net.op("Pad", net.conv("x", 4, "first"), pads)
    net.channels[wide] = 6
    return [net.conv(wide, 4, "second")]


def unequal_channels(net: Net) -> list[str]:
    """Between a convolution's channels and a token's features."""
    first = net.conv("x", 4, "first")
    return [net.op("Add", net.op("MatMul", first, net.weight("w", 8, 8)), net.conv(first, 4, "second"))]


def one_channel_multiplied(net: Net) -> list[str]:
    """To as many channels as the factor has."""
    times = net.op("Mul", net.conv("x", 1, "first"), net.weight("c", 4, 1, 1))
    return [net.op("Sigmoid", times)]


def multiplied_by_a_map(net: Net) -> list[str]:
    return [net.op("Sigmoid", net.op("Mul", net.conv("x", 4, "first"), net.weight("map", 4, 8, 8)))]


def multiplied_by_a_number(net: Net) -> list[str]:
    return [net.conv(net.op("Mul", net.conv("x", 4, "first"), net.constant("c", np.float32(2))), 4, "second")]


REFUSED = [
    one_channel_multiplied,
    multiplied_by_a_map,
    multiplied_by_a_number,
    channels_added,
    unequal_channels,
    sigmoid_between,
    also_an_output,
    read_by_another_op,
    shared_weight,
    shared_bias,
    concatenation,
    input_added,
    input_alone,
    constant_added,
    broadcast_added,
    padded_with_ones,
    flattened_positions,
    other_axis,
    weight_read_as_data,
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_no_group_where_a_factor_would_not_pass(make: Callable[[Net], list[str]]) -> None:
    net = Net(4, 8, 8)
    names = make(net)
    graph = net.graph(*names, example=images(3, 4), ranks=[4] * len(names))
    assert find_scale_groups(graph, row_shapes(graph.model, images(1, 4))) == []
