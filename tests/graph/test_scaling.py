"""Scale groups: where they are found; scaled by any factors, a network computes the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.graph import Graph, serialize
from mixq.graph.capture import relative_error
from mixq.graph.layers import row_shapes
from mixq.graph.scaling import ScaleGroup, find_scale_groups, scaled
from mixq.task import Array
from tests.helpers import Net, images, ort_run, residual

Built = tuple[Net, str, int]


def normalization(net: Net, x: str, channels: int, name: str = "norm") -> str:
    constants = [net.constant(f"{name}{i}", net.random.uniform(0.5, 2, channels).astype(np.float32)) for i in range(4)]
    return net.op("BatchNormalization", x, *constants, name=name)


def chain() -> Built:
    net = Net(4, 8, 8)
    pooled = net.op("MaxPool", net.op("Relu", net.conv("x", 6, "first")), kernel_shape=[2, 2])
    return net, net.conv(pooled, 4, "second"), 4


def padded() -> Built:
    net = Net(4, 8, 8)
    leaky = net.op("LeakyRelu", net.conv("x", 6, "first"), alpha=0.1)
    pads = net.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    pooled = net.op("AveragePool", net.op("Pad", leaky, pads), kernel_shape=[2, 2])
    return net, net.conv(pooled, 4, "second", groups=2), 4


def behind_norm() -> Built:
    """The ReLU before the norm is a group of its own only where a layer reads it."""
    net = Net(4, 8, 8)
    normal = normalization(net, net.op("Relu", net.conv("x", 4, "first")), 4)
    return net, net.conv(normal, 4, "second"), 4


def depthwise() -> Built:
    net = Net(4, 8, 8)
    inner = net.op("Relu", net.conv(net.op("Relu", net.conv("x", 6, "wide", kernel=1)), 6, "deep", groups=6))
    return net, net.conv(inner, 4, "narrow", kernel=1), 4


def straight() -> Built:
    """Nothing between the two layers, and nothing but linear ops before the last."""
    net = Net(4, 8, 8)
    inner = net.conv(net.conv("x", 6, "first"), 6, "deep", groups=6)
    pooled = net.op("AveragePool", net.op("Add", inner, net.conv("x", 6, "other")), kernel_shape=[2, 2])
    return net, net.conv(pooled, 4, "last", kernel=1), 4


def additions() -> Built:
    """Three writers and three readers of one stream of residuals."""
    net = Net(4, 8, 8)
    stem = net.op("Relu", net.conv("x", 6, "stem"))
    one = net.op("Add", stem, net.conv(stem, 6, "left"))
    two = net.op("Relu", net.op("Add", one, net.conv(one, 6, "right")))
    return net, net.conv(two, 4, "last"), 4


def classifier() -> Built:
    net = Net(4, 8, 8)
    return net, net.gemm(net.pooled(net.op("Relu", net.conv("x", 6, "first"))), 6, 5, "head"), 2


def multiplied() -> Built:
    """A factor a channel is written to and read from as a layer is."""
    net = Net(4, 8, 8)
    times = net.op("Mul", net.op("Relu", net.conv("x", 6, "first")), net.weight("gamma", 6, 1, 1), name="times")
    return net, net.conv(times, 4, "second"), 4


def linear() -> Built:
    net = Net(4, 8, 8)
    hidden = net.op("Relu", net.gemm(net.pooled("x"), 4, 7, "first"))
    return net, net.op("Gemm", hidden, net.weight("w", 7, 3), name="second"), 2


def tokens() -> Built:
    net = Net(4, 8, 8)
    factors = [net.constant(name, net.random.uniform(0.5, 2, 8).astype(np.float32)) for name in ("gamma", "beta")]
    normal = net.op("LayerNormalization", "x", *factors, name="norm", axis=-1)
    both = [net.op("MatMul", normal, net.weight(f"w{i}", 8, 6), name=f"to{i}") for i in range(2)]
    return net, net.op("Mul", *both), 4


def upwards() -> Built:
    net = Net(4, 8, 8)
    up = net.op("ConvTranspose", "x", net.weight("w", 4, 6, 2, 2), net.weight("b", 6), name="up", strides=[2, 2])
    net.channels[up] = 6
    down = net.op("Relu", net.conv(net.op("Relu", up), 6, "down"))
    return net, net.op("ConvTranspose", down, net.weight("v", 6, 3, 2, 2), name="again"), 4


Writers = tuple[str, ...]
FOUND: dict[Callable[[], Built], list[tuple[Writers, Writers]]] = {
    chain: [(("first",), ("second",))],
    padded: [(("first",), ("second",))],
    behind_norm: [(("norm",), ("second",))],
    depthwise: [(("wide",), ("deep",)), (("deep",), ("narrow",))],
    additions: [(("stem", "left", "right"), ("left", "right", "last"))],
    classifier: [(("first",), ("head",))],
    multiplied: [(("first",), ("times",)), (("times",), ("second",))],
    linear: [(("first",), ("second",))],
    straight: [(("first",), ("deep",)), (("deep", "other"), ("last",))],
    tokens: [(("norm",), ("to0", "to1"))],
    upwards: [(("up",), ("down",)), (("down",), ("again",))],
}


@cache
def built(make: Callable[[], Built]) -> Graph:
    net, output, rank = make()
    return net.graph(output, example=images(3, 4), ranks=[rank])


def groups_of(graph: Graph, channels: int = 4) -> list[ScaleGroup]:
    name = str(graph.model.graph.inputs[0].name)
    return find_scale_groups(graph, row_shapes(graph.model, images(1, channels, name=name)))


networks = pytest.mark.parametrize("make", list(FOUND), ids=lambda make: make.__name__)


@networks
def test_groups_are_found(make: Callable[[], Built]) -> None:
    found = groups_of(built(make))
    assert [(set(group.writers), set(group.readers)) for group in found] == [
        (set(writers), set(readers)) for writers, readers in FOUND[make]
    ]
    values = {str(value.name) for node in built(make).model.graph for value in node.outputs}
    for group in found:
        assert values.issuperset(group.tensors)


def test_groups_name_channels_and_axis() -> None:
    (group,) = groups_of(built(chain))
    assert (group.tensors, group.channels, group.axis) == (("first", "relu1", "maxpool2"), 6, 1)
    (group,) = groups_of(built(tokens))
    assert (group.tensors, group.channels, group.axis) == (("norm",), 8, 3)


@pytest.mark.parametrize(
    ("make", "turns"),
    [
        (chain, [False]),
        (padded, [False]),
        (behind_norm, [True]),
        (depthwise, [False, False]),
        (straight, [True, True]),
        (additions, [False]),
        (multiplied, [False, True]),
        (tokens, [True]),
    ],
    ids=lambda given: getattr(given, "__name__", ""),
)
def test_channels_may_be_turned_over_where_all_between_is_linear(make: Callable[[], Built], turns: list[bool]) -> None:
    assert [group.turns for group in groups_of(built(make))] == turns


def test_groups_of_a_network_from_torch() -> None:
    found = {(group.writers, group.readers) for group in groups_of(residual(), 3)}
    assert found == {(("stem", "right"), ("left", "head")), (("left",), ("right",))}


def outputs(graph: Graph) -> Array:
    (found,) = ort_run(serialize(graph.model))(images(5, 4, seed=3)).values()
    return found


@networks
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_factors_leave_the_function_as_it_is(make: Callable[[], Built], data: st.DataObject) -> None:
    graph = built(make)
    before = serialize(graph.model)

    def drawn(group: ScaleGroup) -> Array:
        signs = st.sampled_from([-1, 1] if group.turns else [1])
        of_channel = st.tuples(signs, st.floats(-6, 6)).map(lambda pair: pair[0] * 2.0 ** pair[1])
        return np.array(data.draw(st.lists(of_channel, min_size=group.channels, max_size=group.channels)))

    factors = [(group, drawn(group)) for group in groups_of(graph)]
    after = scaled(graph, factors)
    assert relative_error(outputs(graph), outputs(after)) < 1e-4
    assert after.layer_names == graph.layer_names
    assert serialize(graph.model) == before


def test_tensors_are_divided_by_their_factors() -> None:
    graph = built(chain)
    (group,) = groups_of(graph)
    factor = np.array([1, 2, 4, 8, 0.5, 0.25])
    after = scaled(graph, [(group, factor)])
    want, have = graph.weight("first.weight"), after.weight("first.weight")
    np.testing.assert_array_equal(have, want / factor[:, None, None, None].astype(np.float32))
    np.testing.assert_array_equal(after.weight("first.bias"), graph.weight("first.bias") / factor.astype(np.float32))
    np.testing.assert_array_equal(
        after.weight("second.weight"), graph.weight("second.weight") * factor[None, :, None, None].astype(np.float32)
    )
    np.testing.assert_array_equal(after.weight("second.bias"), graph.weight("second.bias"))
