"""Joints: what layers compute passes them, one by one, on its way to the layers behind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings

from mixq.graph import Graph, capture
from mixq.graph.cut import joints
from mixq.graph.layers import row_shapes
from mixq.task import Inputs
from tests.graph.test_random_graphs import CHANNELS, graphs
from tests.helpers import Net, images, ort_run, residual
from tests.support.cases import WORDS, Attention


def found(graph: Graph, example: Inputs) -> list[str]:
    return [name for cut in joints(graph, row_shapes(graph.model, example)) for name in cut.tensors]


def layers_behind(graph: Graph, start: Sequence[ir.Value], without: str) -> set[str]:
    """Names of the layers, and of outputs, that paths from `start` lead to, none of which passes `without`."""
    seen: set[str] = set()
    open_values = [value for value in start if value.name != without]
    reached: set[str] = set()
    while open_values:
        value = open_values.pop()
        if value.is_graph_output():
            reached.add(str(value.name))
        for node in value.consumers():
            if str(node.name) not in seen:
                seen.add(str(node.name))
                reached |= {str(node.name)} & graph.by_name.keys()
                open_values += [output for output in node.outputs if output.name != without]
    return reached


def test_a_residual_block_has_its_joints_around_it() -> None:
    graph = residual()
    block = graph.by_name["left"].input
    assert found(graph, images(3, name="image")) == [block, graph.by_name["head"].input]


def test_a_chain_has_one_before_each_layer_but_the_first() -> None:
    net = Net(3, 8, 8)
    for number in range(3):
        net.op("Relu", net.conv("x" if number == 0 else f"relu{number - 1}", 8, f"conv{number}"), name=f"relu{number}")
    graph = net.graph(net.gemm(net.pooled("relu2"), 8, 5, "head"), example=images(3))
    assert found(graph, images(3)) == [graph.by_name[name].input for name in ("conv1", "conv2", "head")]


def test_a_skip_from_the_input_does_not_count() -> None:
    """It comes from no layer: what is behind it is as FP32's, whatever the layers do."""
    net = Net(3, 8, 8)
    first = net.conv("x", 3, "first")
    graph = net.graph(net.gemm(net.pooled(net.op("Add", first, "x")), 3, 5, "head"), example=images(3))
    assert found(graph, images(3)) == [graph.by_name["head"].input]
    deep = Net(3, 8, 8)
    second = deep.conv(deep.conv("x", 3, "first"), 3, "second")
    graph = deep.graph(deep.gemm(deep.pooled(deep.op("Add", second, "x")), 3, 5, "head"), example=images(3))
    assert found(graph, images(3)) == ["first", graph.by_name["head"].input]


def test_around_attention() -> None:
    example = {"ids": np.random.default_rng(0).integers(0, WORDS, (3, 12))}
    graph = capture(Attention().eval(), example, ort_run)
    assert found(graph, example) == [graph.by_name[name].input for name in ("query", "out")]


@settings(max_examples=40)
@given(graphs())
def test_nothing_passes_a_joint_by(graph: Graph) -> None:
    nodes = list(graph.model.graph)
    for cut in joints(graph, row_shapes(graph.model, images(3, CHANNELS))):
        (name,) = cut.tensors
        before = [node for node in nodes[: cut.position] if str(node.name) in graph.by_name]
        assert before
        written = [value for node in before for value in node.outputs]
        assert layers_behind(graph, written, name) <= {str(node.name) for node in before}
