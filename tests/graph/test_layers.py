"""The layer table against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.errors import InputError
from mixq.graph import Layer
from tests.helpers import Net, images, residual, schemes


def only_layer(net: Net, output: str, *, rank: int, channels: int = 6) -> Layer:
    (layer,) = net.graph(output, example=images(3, channels), ranks=[rank]).layers
    return layer


def test_convolution() -> None:
    net = Net(6, 8, 8)
    layer = only_layer(net, net.conv("x", 12, "c", kernel=3, groups=3, strides=[2, 2]), rank=4)
    assert (layer.op, layer.input, layer.output, layer.weight, layer.bias) == ("Conv", "x", "c", "c.weight", "c.bias")
    assert (layer.input_shape, layer.weight_shape, layer.output_shape) == ((1, 6, 8, 8), (12, 2, 3, 3), (1, 12, 4, 4))
    assert layer.macs == 4 * 4 * 12 * (6 // 3) * 3 * 3  # positions × output channels × inputs of each
    assert layer.parameters == 12 * 2 * 9 + 12
    assert layer.bytes == 4 * layer.parameters
    assert layer.channel_axis == 0


def test_transposed_convolution() -> None:
    net = Net(6, 8, 8)
    output = net.op("ConvTranspose", "x", net.weight("w", 6, 5, 2, 2), name="up", strides=[2, 2])
    layer = only_layer(net, output, rank=4)
    assert layer.output_shape == (1, 5, 16, 16)
    assert layer.macs == 8 * 8 * 6 * 5 * 2 * 2  # every input value meets every weight of its channel once
    assert layer.channel_axis == 1


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    net = Net(6, 8, 8)
    weight = net.weight("w", *((7, 6) if transposed else (6, 7)))
    layer = only_layer(net, net.op("Gemm", net.pooled("x"), weight, transB=transposed), rank=2)
    assert layer.macs == 6 * 7
    assert layer.channel_axis == 1 - transposed


@pytest.mark.parametrize("shape", [(1, 7), (7,), (1,)])
def test_only_a_bias_of_one_value_a_channel_is_one(shape: tuple[int, ...]) -> None:
    net = Net(6, 8, 8)
    layer = only_layer(net, net.op("Gemm", net.pooled("x"), net.weight("w", 6, 7), net.weight("b", *shape)), rank=2)
    assert layer.bias == ("b" if shape == (7,) else None)


def test_matmul_of_tokens() -> None:
    net = Net(6, 8, 8)
    layer = only_layer(net, net.op("MatMul", "x", net.weight("w", 8, 9)), rank=4)
    assert layer.macs == (6 * 8) * 8 * 9  # rows × inputs × outputs
    assert layer.channel_axis == 1


def test_nodes_with_one_constant_weight_and_products_of_activations_are_layers() -> None:
    net = Net(6, 8, 8)
    products = net.op("MatMul", "x", "x")
    scaled = net.op("MatMul", net.weight("left", 8, 8), products)
    graph = net.graph(net.gemm(net.pooled(scaled), 6, 2, "head"), example=images(3, 6))
    assert graph.layer_names == ["matmul0", "head"]
    product = graph.by_name["matmul0"]
    assert (product.weight, product.other, product.parameters, product.macs) == (None, "x", 0, 6 * 8 * 8 * 8)
    assert product.operands == {0: "x", 1: "x"}


def test_nodes_without_a_name_are_named_for_their_outputs_and_no_two_alike() -> None:
    net = Net(6, 8, 8)
    first, second = net.conv("x", 6, "a"), net.op("Relu", "x", name="b")
    net.nodes[0].name, net.nodes[1].name = "", "a"
    graph = net.graph(net.op("Add", first, second), example=images(3, 6), ranks=[4])
    assert graph.layer_names == ["a"]
    names = [str(node.name) for node in graph.model.graph]
    assert len(set(names)) == 3


def test_macs_of_a_network() -> None:
    macs = {layer.name: layer.macs for layer in residual().layers}
    assert macs == {"stem": 64 * 8 * 27, "left": 16 * 8 * 72, "right": 16 * 8 * 72, "head": 8 * 5}


def test_an_unknown_layer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'tail'; known: stem, left, right, head"):
        residual().layer("tail")
    assert residual().layer("head").op == "Gemm"


def test_weights_by_name() -> None:
    graph = residual()
    assert graph.weight(graph.layer("left").weight).shape == (8, 8, 3, 3)
    with pytest.raises(KeyError):
        graph.weight("nothing")


def test_layers_are_rows_of_the_configuration() -> None:
    config = schemes(residual(), "int8", head="fp32")
    assert config.counts() == {"fp32": 1, "int8": 3}
    assert np.sum([layer.bytes for layer in residual().layers]) == 4 * (27 * 8 + 8 + 2 * (72 * 8 + 8) + 45)


def test_a_matmul_with_a_matrix_a_head_is_no_layer() -> None:
    net = Net(3, 9, 6)
    product = net.op("MatMul", "x", net.weight("heads", 3, 6, 5), name="product")
    last = net.op("MatMul", product, net.weight("w", 5, 4), name="last")
    example = {"x": np.ones((2, 3, 9, 6), np.float32)}
    assert net.graph(last, example=example, ranks=[4]).layer_names == ["last"]


def test_groups_and_strides_are_those_of_the_convolution() -> None:
    net = Net(4, 8, 8)
    grouped = net.conv("x", 8, "grouped", groups=2, strides=[2, 1])
    last = net.gemm(net.pooled(net.conv(grouped, 4, "plain")), 4, 2, "last")
    found = {layer.name: (layer.groups, layer.strides) for layer in net.graph(last, example=images(2, 4)).layers}
    assert found == {"grouped": (2, (2, 1)), "plain": (1, (1, 1)), "last": (1, ())}


@pytest.mark.parametrize("swapped", [False, True])
def test_the_bias_of_a_matmul_is_what_the_addition_behind_it_adds(swapped: bool) -> None:
    net = Net(6, 8, 8)
    product = net.op("MatMul", "x", net.weight("w", 8, 9), name="product")
    bias = net.weight("b", 9)
    net.op("Add", *((bias, product) if swapped else (product, bias)), name="y")
    layer = only_layer(net, "y", rank=4)
    assert (layer.bias, layer.adds_bias, layer.parameters) == ("b", False, 81)


@pytest.mark.parametrize("case", ["one value", "two readers", "an output", "activations"])
def test_other_additions_behind_a_matmul_are_no_bias(case: str) -> None:
    net = Net(6, 8, 8)
    product = net.op("MatMul", "x", net.weight("w", 8, 8), name="product")
    net.op("Add", product, "x" if case == "activations" else net.weight("b", 1 if case == "one value" else 8), name="y")
    outputs = ["y"]
    if case == "two readers":
        outputs.append(net.op("Relu", product, name="z"))
    if case == "an output":
        outputs.append(product)
    graph = net.graph(*outputs, example=images(3, 6), ranks=[4] * len(outputs))
    assert graph.by_name["product"].bias is None
