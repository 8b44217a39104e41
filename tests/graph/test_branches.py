"""Scales of their own: between normalizations and matrices where something else reads too, before depthwise layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixq.graph import Graph, serialize
from mixq.graph.branches import SUFFIX, depthwise_scales, with_branch_scales, without_idle_scales, without_scales
from mixq.graph.capture import relative_error
from mixq.graph.edit import nodes_by_name
from mixq.graph.layers import row_shapes
from mixq.graph.scaling import find_scale_groups, scaled
from tests.helpers import Net, images, ort_run

TOKENS = images(3, 4, name="x")  # (3, 4, 8, 8)


def block(*, residual: bool = True, given_out: bool = False, axis: int = -1, computed: bool = False) -> Graph:
    """norm → two matrices → product; and, if residual, norm + product."""
    net = Net(4, 8, 8)
    width = [8] if axis == -1 else [8, 8]
    gamma = net.op("ReduceMax", "x", net.constant("axes", np.array([0, 1, 2])), keepdims=0) if computed else None
    normal = net.op("LayerNormalization", "x", gamma or net.weight("gamma", *width), name="norm", axis=axis)
    left, right = (net.op("MatMul", normal, net.weight(f"{n}.weight", 8, 8), name=n) for n in ("left", "right"))
    last = net.op("Mul", left, right, name="both")
    outputs = [net.op("Add", normal, last, name="sum") if residual else last, *([normal] if given_out else [])]
    return net.graph(*outputs, example=TOKENS, ranks=[4] * len(outputs))


def stream(*, groups: int = 4, channels: int = 4) -> Graph:
    """A stream of residuals, which a ReLU6 and two convolutions of `groups` groups read."""
    net = Net(4, 8, 8)
    stem = net.op("Relu", net.conv("x", channels, "stem"))
    one = net.op("Add", stem, net.conv(stem, channels, "first", groups=groups), name="one")
    clipped = net.op(
        "Clip", one, net.constant("low", np.float32(0)), net.constant("high", np.float32(6)), name="clipped"
    )
    last = net.op("Add", one, net.conv(clipped, channels, "second", groups=groups), name="two")
    return net.graph(last, example=TOKENS, ranks=[4])


def scales(graph: Graph) -> list[str]:
    return [name for name in nodes_by_name(graph.model.graph) if name.endswith(SUFFIX)]


@pytest.mark.parametrize("graph", [block(), block(residual=False, given_out=True)], ids=["residual", "given out"])
def test_a_branch_gets_a_scale_which_the_layers_alone_read(graph: Graph) -> None:
    found = with_branch_scales(graph)
    assert scales(found) == ["norm" + SUFFIX]
    assert [layer.input for layer in found.layers] == ["norm" + SUFFIX] * 2
    assert [layer.input for layer in graph.layers] == ["norm"] * 2
    groups = find_scale_groups(found, row_shapes(found.model, images(1, 4)))
    assert [(group.writers, group.readers) for group in groups] == [(("norm" + SUFFIX,), ("left", "right"))]


def test_depthwise_layers_get_a_scale_each_wherever_they_read() -> None:
    found = with_branch_scales(stream())
    assert scales(found) == ["first" + SUFFIX, "second" + SUFFIX]
    assert depthwise_scales(found) == {"first" + SUFFIX: stream().layer("first").input, "second" + SUFFIX: "clipped"}
    assert {layer.name: layer.input for layer in found.layers} == {
        "stem": "x",
        "first": "first" + SUFFIX,
        "second": "second" + SUFFIX,
    }
    groups = find_scale_groups(found, row_shapes(found.model, images(1, 4)))
    assert {(group.writers, group.readers, group.axis) for group in groups} >= {
        ((f"{name}{SUFFIX}",), (name,), 1) for name in ("first", "second")
    }


def test_depthwise_layers_that_read_the_same_share_a_scale() -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", "x", name="relu")
    both = net.op("Add", *(net.conv(relu, 8, name, groups=4) for name in ("left", "right")))
    found = with_branch_scales(net.graph(both, example=TOKENS, ranks=[4]))
    assert depthwise_scales(found) == {"left" + SUFFIX: "relu"}
    assert [layer.input for layer in found.layers] == ["left" + SUFFIX] * 2


@pytest.mark.parametrize(
    "graph",
    [block(residual=False), block(axis=-2), block(computed=True), stream(groups=1), stream(groups=2)],
    ids=["layers alone", "two axes", "a factor that is computed", "one group", "channels together"],
)
def test_elsewhere_there_is_none(graph: Graph) -> None:
    found = with_branch_scales(graph)
    assert serialize(found.model) == serialize(graph.model)
    assert found.layers == graph.layers


made = pytest.mark.parametrize("make", [block, stream], ids=["normalization", "depthwise"])


@made
def test_any_factors_leave_the_function_as_it_is(make: Callable[[], Graph]) -> None:
    found = with_branch_scales(make())
    groups = find_scale_groups(found, row_shapes(found.model, images(1, 4)))
    assert set(scales(found)) <= {name for group in groups for name in group.writers}
    factors = [(group, np.exp2(np.linspace(-6, 6, group.channels))) for group in groups]
    after = without_idle_scales(scaled(found, factors))
    assert scales(after) == scales(found)
    before, now = (next(iter(ort_run(serialize(graph.model))(TOKENS).values())) for graph in (make(), after))
    assert relative_error(before, now) < 1e-5


@made
def test_a_scale_of_ones_goes_without_a_trace(make: Callable[[], Graph]) -> None:
    back = without_idle_scales(with_branch_scales(make()))
    assert serialize(back.model) == serialize(make().model)
    assert back.layers == make().layers


def test_those_named_go_and_the_others_stay() -> None:
    found = without_scales(with_branch_scales(stream()), ["first" + SUFFIX])
    assert scales(found) == ["second" + SUFFIX]
    assert found.layer("first").input == stream().layer("first").input


@made
def test_a_second_time_changes_nothing(make: Callable[[], Graph]) -> None:
    once = with_branch_scales(make())
    assert serialize(with_branch_scales(once).model) == serialize(once.model)
