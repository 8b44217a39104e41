"""Where the pairs stand, for both runtimes' placements."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.graph import Graph
from mixq.graph.placement import Placement
from mixq.graph.plan import Plan, candidates, make_plan
from mixq.runtimes import NAMES, get_runtime
from tests.helpers import Net, images, residual

PLACEMENTS = {name: get_runtime(name).placement for name in NAMES}
OPENVINO, ORT = PLACEMENTS["openvino"], PLACEMENTS["onnxruntime"]
EXAMPLE = images(3, 4)


both = pytest.mark.parametrize("placement", PLACEMENTS.values(), ids=PLACEMENTS)


def readers(plan: Plan) -> dict[str, set[str]]:
    return {tensor: {node for node, _ in edges} for tensor, edges in plan.reads.items()}


def pooled_net() -> Graph:
    """x → first → relu → pool → second → head."""
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"), name="relu")
    pool = net.op("MaxPool", relu, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    second = net.conv(pool, 4, "second")
    return net.graph(net.gemm(net.pooled(second), 4, 2, "head"), example=EXAMPLE)


def branched(activation: str) -> Graph:
    """Two branches, one behind `activation` and one behind Relu, concatenated for a third convolution."""
    net = Net(4, 8, 8)
    left, right = net.conv("x", 4, "left"), net.conv("x", 4, "right")
    left = net.op(activation, left, name="a") if activation else left
    joined = net.op("Concat", left, net.op("Relu", right, name="b"), name="both", axis=1)
    return net.graph(net.conv(joined, 4, "third"), example=EXAMPLE, ranks=[4])


@both
def test_nothing_is_quantized_without_int8_layers(placement: Placement) -> None:
    assert make_plan(residual(), [], placement).tensors == []


@both
def test_pairs_move_up_through_pooling(placement: Placement) -> None:
    plan = make_plan(pooled_net(), ["first", "second"], placement)
    assert plan.inputs == {"first": ("x",), "second": ("relu",)}
    assert readers(plan)["relu"] == {"pool"}
    (group,) = [group for group in plan.groups if "relu" in group]
    assert set(group) == ({"relu"} if placement is OPENVINO else {"relu", "pool"})


def test_pooling_behind_a_float_layer_stays_float_on_onnxruntime() -> None:
    assert make_plan(pooled_net(), ["second"], ORT).inputs == {"second": ("pool",)}
    assert make_plan(pooled_net(), ["second"], OPENVINO).inputs == {"second": ("relu",)}


def test_openvino_repeats_no_pair() -> None:
    assert make_plan(pooled_net(), ["first", "second"], OPENVINO).tensors == ["x", "relu"]


def test_onnxruntime_has_pairs_around_every_op() -> None:
    found = readers(make_plan(pooled_net(), ["first", "second"], ORT))
    assert found == {"x": {"first"}, "relu": {"pool"}, "pool": {"second"}, "second": {"globalaveragepool4"}}


@both
def test_a_pair_does_not_move_above_a_float_reader(placement: Placement) -> None:
    net = Net(4, 8, 8)
    pool = net.op("MaxPool", "x", name="pool", kernel_shape=[2, 2], strides=[2, 2])
    left, right = net.conv(pool, 4, "left"), net.conv(pool, 4, "right")
    graph = net.graph(left, right, example=EXAMPLE, ranks=[4, 4])
    plan = make_plan(graph, ["left"], placement)
    assert readers(plan)["pool"] == {"left"}
    assert "x" not in plan.reads
    assert plan.inputs == {"left": ("pool",)}


@both
def test_float_readers_read_the_float_tensor(placement: Placement) -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", "x", name="relu")
    left, right = net.conv(relu, 4, "left"), net.conv(relu, 4, "right")
    graph = net.graph(net.op("Add", left, net.op("Tanh", relu), name="sum"), right, example=EXAMPLE, ranks=[4, 4])
    assert readers(make_plan(graph, ["left"], placement))["relu"] == {"left"}


@both
def test_branches_of_a_concat_share_their_parameters(placement: Placement) -> None:
    plan = make_plan(branched("Relu"), ["left", "right", "third"], placement)
    (group,) = [group for group in plan.groups if "a" in group]
    assert {"a", "b"} <= set(group)
    assert readers(plan)["a"] == readers(plan)["b"] == {"both"}


@pytest.mark.parametrize("activation", ["", "LeakyRelu"])
def test_branches_out_of_different_activations_keep_their_own_on_onnxruntime(activation: str) -> None:
    plan = make_plan(branched(activation), ["left", "right", "third"], ORT)
    assert all(len(group) == 1 for group in plan.groups)
    assert plan.inputs["third"] == ("both",)
    assert readers(plan)["b"] == {"both"}


@both
def test_a_residual_addition_between_int8_layers_reads_codes(placement: Placement) -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"), name="relu")
    total = net.op("Relu", net.op("Add", net.conv(relu, 4, "second"), relu, name="sum"), name="after")
    graph = net.graph(net.conv(total, 4, "third"), example=EXAMPLE, ranks=[4])
    found = readers(make_plan(graph, ["first", "second", "third"], placement))
    assert found["relu"] == {"second", "sum"}
    assert found["after"] == {"third"}
    assert found["second"] == {"sum"}
    assert "sum" not in readers(make_plan(graph, ["second"], placement)).get("relu", set())


def test_the_last_residual_addition_reads_codes_where_the_pooled_one_is_quantized() -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"), name="relu")
    total = net.op("Relu", net.op("Add", net.conv(relu, 4, "second"), relu, name="sum"), name="after")
    net.gemm(net.op("Flatten", net.op("GlobalAveragePool", total, name="mean")), 4, 2, "head")
    graph = net.graph("head", example=EXAMPLE)
    found = readers(make_plan(graph, ["first", "second", "head"], OPENVINO))
    assert found["relu"] == {"second", "sum"}
    assert found["second"] == {"sum"}
    assert found["after"] == {"mean"}
    assert readers(make_plan(graph, ["first", "second"], OPENVINO)).keys() == {"x", "relu"}, "mean's output is float"
    assert readers(make_plan(graph, ["first", "head"], OPENVINO)).keys() == {"x", "mean"}, "second writes floats"


def test_an_addition_on_onnxruntime_demands_a_pair_on_its_other_input() -> None:
    net = Net(4, 8, 8)
    total = net.op("Add", net.conv("x", 4, "kept"), net.conv("x", 4, "first"), name="sum")
    graph = net.graph(net.conv(total, 4, "last"), example=EXAMPLE, ranks=[4])
    found = readers(make_plan(graph, ["first", "last"], ORT))
    assert found["kept"] == found["first"] == {"sum"}
    assert readers(make_plan(graph, ["first", "last"], OPENVINO)).keys() == {"x", "sum"}
    assert "kept" not in readers(make_plan(graph, ["last"], ORT))


def test_an_op_with_a_constant_operand_stays_float_on_onnxruntime() -> None:
    net = Net(4, 8, 8)
    shifted = net.op("Add", net.conv("x", 4, "first"), net.weight("shift", 4, 1, 1), name="sum")
    graph = net.graph(net.conv(shifted, 4, "last"), example=EXAMPLE, ranks=[4])
    assert readers(make_plan(graph, ["first", "last"], ORT))["sum"] == {"last"}


def test_a_chain_of_integer_ops_joins_from_its_end() -> None:
    net = Net(4, 8, 8)
    value = net.op("LeakyRelu", net.conv("x", 4, "first"), name="leaky")
    value = net.op("Sigmoid", net.op("AveragePool", value, name="pool", kernel_shape=[2, 2]), name="gate")
    graph = net.graph(net.conv(value, 4, "last"), example=EXAMPLE, ranks=[4])
    found = readers(make_plan(graph, ["first", "last"], ORT))
    assert found == {
        "x": {"first"},
        "first": {"leaky"},
        "leaky": {"pool"},
        "pool": {"gate"},
        "gate": {"last"},
        "last": set(),
    }
    assert readers(make_plan(graph, ["last"], ORT)) == {"gate": {"last"}, "last": set()}


def test_onnxruntime_gets_an_output_pair_behind_the_activation_that_everyone_reads() -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"), name="relu")
    graph = net.graph(net.op("Tanh", relu, name="t"), net.conv(relu, 4, "last"), relu, example=EXAMPLE, ranks=[4, 4, 4])
    plan = make_plan(graph, ["first"], ORT)
    assert readers(plan) == {"x": {"first"}, "relu": {"t", "last"}}
    assert plan.outputs == {"relu"}
    assert make_plan(graph, ["first"], OPENVINO).tensors == ["x"]


def test_the_graphs_own_output_stays_float_on_openvino() -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", "x", name="relu")
    graph = net.graph(relu, net.conv(relu, 4, "last"), example=EXAMPLE, ranks=[4, 4])
    assert make_plan(graph, ["last"], OPENVINO).outputs == frozenset()


def test_a_pair_stands_before_an_activation_that_reads_a_graph_output() -> None:
    net = Net(4, 8, 8)
    first = net.conv("x", 4, "first")
    graph = net.graph(first, net.op("Relu", first, name="relu"), example=EXAMPLE, ranks=[4, 4])
    assert readers(make_plan(graph, ["first"], ORT)) == {"x": {"first"}, "first": {"relu"}}


@pytest.mark.parametrize(("activation", "pair"), [("Relu", True), ("Tanh", True), ("Gelu", False)])
def test_a_gemm_gets_an_output_pair_where_an_activation_would_be_fused_in_float(activation: str, pair: bool) -> None:
    net = Net(4, 8, 8)
    net.op(activation, net.gemm(net.pooled("x"), 4, 3, "head"), name="last")
    plan = make_plan(net.graph("last", example=EXAMPLE), ["head"], ORT)
    assert bool({"head", "last"} & set(plan.tensors)) == pair


@pytest.mark.parametrize(("value", "on_codes"), [(0.0, True), (1.0, False)])
def test_only_padding_with_zeros_is_written_on_codes(value: float, on_codes: bool) -> None:
    net = Net(4, 8, 8)
    pads = net.constant("pads", np.array([0, 2, 0, 0, 0, 2, 0, 0], np.int64))
    net.op("Pad", net.conv("x", 4, "first"), pads, net.constant("value", np.float32(value)), name="pad")
    net.channels["pad"] = 8
    plan = make_plan(net.graph(net.conv("pad", 4, "last"), example=EXAMPLE, ranks=[4]), ["first", "last"], ORT)
    assert plan.rewritten == ({"pad"} if on_codes else set())
    assert plan.inputs["last"] == (("first" if on_codes else "pad"),)


def test_batch_norm_on_codes_is_rewritten_on_onnxruntime() -> None:
    net = Net(4, 8, 8)
    relu = net.op("Relu", net.conv("x", 4, "first"))
    statistics = [net.constant(f"bn{i}", np.linspace(0.5, 2, 4).astype(np.float32)) for i in range(4)]
    graph = net.graph(
        net.conv(net.op("BatchNormalization", relu, *statistics, name="bn"), 4, "last"), example=EXAMPLE, ranks=[4]
    )
    assert make_plan(graph, ["first", "last"], ORT).rewritten == {"bn"}
    assert make_plan(graph, ["last"], ORT).rewritten == frozenset()
    assert make_plan(graph, ["first", "last"], OPENVINO).rewritten == frozenset()


@both
def test_candidates_hold_every_tensor_of_every_plan(placement: Placement) -> None:
    graph = residual()
    known = set(candidates(graph, placement))
    names = graph.layer_names
    for chosen in range(2 ** len(names)):
        int8 = [name for index, name in enumerate(names) if chosen >> index & 1]
        assert set(make_plan(graph, int8, placement).tensors) <= known


def test_a_pair_does_not_move_into_a_float_product_that_openvino_transposes() -> None:
    """Behind attention, whose product is brought into another layout for the layer that reads it."""
    net = Net(4, 8, 8)
    square = net.op("MatMul", "x", net.op("Identity", "x", name="again"), name="square")
    turned = net.op("Transpose", square, name="turned", perm=[0, 1, 3, 2])
    graph = net.graph(net.conv(turned, 4, "conv"), example=EXAMPLE, ranks=[4])
    assert "square" in graph.layer_names
    assert make_plan(graph, ["conv"], OPENVINO).inputs["conv"] == ("turned",)
    assert make_plan(graph, ["conv", "square"], OPENVINO).inputs["conv"] == ("square",)
