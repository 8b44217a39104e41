"""Scales of their own are put where a normalization feeds layers and something else too, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.graph import Graph, serialize
from mixq.graph.branches import SUFFIX, with_branch_scales, without_idle_scales
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


@pytest.mark.parametrize(
    "graph",
    [block(residual=False), block(axis=-2), block(computed=True)],
    ids=["layers alone", "two axes", "a factor that is computed"],
)
def test_elsewhere_there_is_none(graph: Graph) -> None:
    found = with_branch_scales(graph)
    assert serialize(found.model) == serialize(graph.model)
    assert found.layers == graph.layers


def test_any_factors_leave_the_function_as_it_is() -> None:
    found = with_branch_scales(block())
    (group,) = find_scale_groups(found, row_shapes(found.model, images(1, 4)))
    after = without_idle_scales(scaled(found, [(group, np.exp2(np.linspace(-6, 6, 8)))]))
    assert scales(after) == scales(found)
    before, now = (ort_run(serialize(graph.model))(TOKENS)["sum"] for graph in (block(), after))
    assert relative_error(before, now) < 1e-5


def test_a_scale_of_ones_goes_without_a_trace() -> None:
    back = without_idle_scales(with_branch_scales(block()))
    assert serialize(back.model) == serialize(block().model)
    assert back.layers == block().layers


def test_a_second_time_changes_nothing() -> None:
    once = with_branch_scales(block())
    assert serialize(with_branch_scales(once).model) == serialize(once.model)
