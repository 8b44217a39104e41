"""Shifts: where they may be; shifted by anything, a network computes the same; the tensors are less the shift."""

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
from mixq.graph.model import with_outputs
from mixq.graph.scaling import find_scale_groups
from mixq.graph.shifting import ShiftPlace, find_shift_places, shifted
from mixq.task import Array
from tests.helpers import Net, images, ort_run

Built = tuple[Net, list[str], int]


def pointwise() -> Built:
    net = Net(4, 8, 8)
    return net, [net.conv(net.conv("x", 6, "first"), 4, "second", kernel=1)], 4


def grouped() -> Built:
    """Two readers, one of them of groups and with a stride."""
    net = Net(4, 8, 8)
    first = net.conv("x", 6, "first", groups=2)
    left = net.conv(first, 4, "left", kernel=1, groups=2, strides=[2, 2])
    return net, [left, net.conv(first, 4, "right", kernel=1)], 4


def behind_norm() -> Built:
    net = Net(4, 8, 8)
    constants = [net.constant(f"norm{i}", net.random.uniform(0.5, 2, 4).astype(np.float32)) for i in range(4)]
    normal = net.op("BatchNormalization", net.op("Relu", net.conv("x", 4, "first")), *constants, name="norm")
    return net, [net.conv(normal, 4, "second", kernel=1)], 4


def unpadded() -> Built:
    net = Net(4, 8, 8)
    first = net.op("Conv", "x", net.weight("first.weight", 6, 4, 1, 1), net.weight("first.bias", 6), name="first")
    deep = net.op("Conv", first, net.weight("w", 6, 1, 3, 3), net.weight("b", 6), name="deep", group=6, pads=[0] * 4)
    return net, [net.op("Sigmoid", deep)], 4


def linear() -> Built:
    net = Net(4, 8, 8)
    hidden = net.gemm(net.pooled("x"), 4, 7, "first")
    return net, [net.gemm(hidden, 7, 5, "second")], 2


def tokens() -> Built:
    net = Net(4, 8, 8)
    normal = net.op("LayerNormalization", "x", net.weight("gamma", 8), net.weight("beta", 8), name="norm", axis=-1)
    both = [
        net.op("Add", net.weight(f"b{i}", 6), net.op("MatMul", normal, net.weight(f"w{i}", 8, 6), name=f"to{i}"))
        for i in range(2)
    ]
    return net, [net.op("Mul", *both)], 4


FOUND: dict[Callable[[], Built], list[ShiftPlace]] = {
    pointwise: [ShiftPlace("first", "first", ("second",))],
    grouped: [ShiftPlace("first", "first", ("left", "right"))],
    behind_norm: [ShiftPlace("norm", "norm", ("second",))],
    unpadded: [ShiftPlace("first", "first", ("deep",))],
    linear: [ShiftPlace("first", "first", ("second",))],
    tokens: [ShiftPlace("norm", "norm", ("to0", "to1"))],
}


def padded() -> Built:
    """A convolution that pads reads too."""
    net = Net(4, 8, 8)
    first = net.conv("x", 6, "first")
    return net, [net.conv(first, 4, "left", kernel=1), net.conv(first, 4, "right")], 4


def padded_by_name() -> Built:
    net = Net(4, 8, 8)
    weight, bias = net.weight("w", 4, 6, 3, 3), net.weight("b", 4)
    return net, [net.op("Conv", net.conv("x", 6, "first"), weight, bias, name="second", auto_pad="SAME_UPPER")], 4


def no_bias() -> Built:
    net = Net(4, 8, 8)
    normal = net.op("LayerNormalization", "x", net.weight("gamma", 8), net.weight("beta", 8), name="norm", axis=-1)
    return net, [net.op("Sigmoid", net.op("MatMul", normal, net.weight("w", 8, 6), name="to"))], 4


def no_beta() -> Built:
    net = Net(4, 8, 8)
    normal = net.op("LayerNormalization", "x", net.weight("gamma", 8), name="norm", axis=-1)
    return net, [net.op("Add", net.op("MatMul", normal, net.weight("w", 8, 6), name="to"), net.weight("b", 6))], 4


def shared_bias() -> Built:
    net = Net(4, 8, 8)
    first, bias = net.conv("x", 4, "first"), net.weight("shared", 4)
    pair = [net.op("Conv", first, net.weight(f"w{i}", 4, 4, 1, 1), bias, name=f"to{i}") for i in range(2)]
    return net, [net.op("Sigmoid", net.op("Add", *pair))], 4


def scaled_gemm() -> Built:
    net = Net(4, 8, 8)
    hidden, head = net.gemm(net.pooled("x"), 4, 7, "first"), (net.weight("w", 7, 5), net.weight("b", 5))
    return net, [net.op("Gemm", hidden, *head, name="second", alpha=0.5)], 2


def bent() -> Built:
    net = Net(4, 8, 8)
    return net, [net.conv(net.op("Relu", net.conv("x", 6, "first")), 4, "second", kernel=1)], 4


def upwards() -> Built:
    net = Net(4, 8, 8)
    first = net.conv("x", 6, "first")
    return net, [net.op("ConvTranspose", first, net.weight("w", 6, 3, 1, 1), net.weight("b", 3), name="up")], 4


@cache
def built(make: Callable[[], Built]) -> Graph:
    net, outputs, rank = make()
    return net.graph(*outputs, example=images(3, 4), ranks=[rank] * len(outputs))


def places_of(graph: Graph) -> list[ShiftPlace]:
    return find_shift_places(graph, find_scale_groups(graph, row_shapes(graph.model, images(1, 4))))


networks = pytest.mark.parametrize("make", list(FOUND), ids=lambda make: make.__name__)


@networks
def test_places_are_found(make: Callable[[], Built]) -> None:
    assert places_of(built(make)) == FOUND[make]


@pytest.mark.parametrize(
    "make",
    [padded, padded_by_name, no_bias, no_beta, shared_bias, scaled_gemm, bent, upwards],
    ids=lambda m: m.__name__,
)
def test_there_is_none_where_something_would_not_make_up_for_it(make: Callable[[], Built]) -> None:
    assert not places_of(built(make))


def outputs(graph: Graph, *more: str) -> dict[str, Array]:
    model = with_outputs(graph.model, more) if more else graph.model
    return dict(ort_run(serialize(model))(images(5, 4, seed=3)))


@networks
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shifts_leave_the_function_as_it_is(make: Callable[[], Built], data: st.DataObject) -> None:
    graph = built(make)
    before, (place,) = serialize(graph.model), FOUND[make]
    want, axis = outputs(graph, place.tensor), -1 if make is tokens else 1
    channels = want[place.tensor].shape[axis]
    shift = np.array(data.draw(st.lists(st.floats(-8, 8), min_size=channels, max_size=channels)))
    after = shifted(graph, [(place, shift)])
    got = outputs(after, place.tensor)
    moved = np.moveaxis(want.pop(place.tensor) - got.pop(place.tensor), axis, -1)
    np.testing.assert_allclose(moved, np.broadcast_to(shift, moved.shape), atol=1e-5)
    for name, value in want.items():
        assert relative_error(value, got[name]) < 1e-4
    assert serialize(graph.model) == before


def test_without_shifts_it_is_the_same_graph() -> None:
    assert serialize(shifted(built(pointwise), []).model) == serialize(built(pointwise).model)
