"""Layers as matrix products against ONNX Runtime: rows @ columns + bias is the layer's own output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixq.graph import Graph, serialize
from mixq.ptq.matrix import LayerMatrix
from mixq.ptq.moments import matrices_of
from mixq.task import Array
from tests.helpers import Net, images, ort_run

EVERYTHING = 2**20


def data(*shape: int) -> dict[str, Array]:
    return {"x": np.random.default_rng(5).normal(size=shape).astype(np.float32)}


def only_matrix(graph: Graph) -> LayerMatrix:
    (matrix,) = matrices_of(graph, graph.layers).values()
    return matrix


def product(graph: Graph, inputs: dict[str, Array]) -> Array:
    """(positions, output channels), by the layer's matrices."""
    matrix = only_matrix(graph)
    columns = matrix.columns(inputs["x"], EVERYTHING, np.random.default_rng(0))
    rows = matrix.rows(graph.weight(matrix.layer.weight))
    found = np.einsum("grc,sgc->sgr", rows, columns).reshape(len(columns), -1)
    return found if matrix.layer.bias is None else np.asarray(found + graph.weight(matrix.layer.bias))


def assert_the_product_is_the_layer(graph: Graph, inputs: dict[str, Array], channel_axis: int) -> None:
    """Output, positions in order, against ONNX Runtime's; and the weight, there and back."""
    (want,) = ort_run(serialize(graph.model))(inputs).values()
    want = np.moveaxis(want, channel_axis, -1)
    np.testing.assert_allclose(product(graph, inputs), want.reshape(-1, want.shape[-1]), atol=1e-4)
    matrix = only_matrix(graph)
    weight = graph.weight(matrix.layer.weight)
    np.testing.assert_array_equal(matrix.weight(matrix.rows(weight)), weight)
    every, summed = (
        matrix.columns(values, EVERYTHING, np.random.default_rng(0)).sum(0)
        for values in (inputs["x"], matrix.summed(inputs["x"]))
    )
    np.testing.assert_allclose(summed, every, atol=1e-3)


def convolution(op: str, sizes: tuple[int, ...], weight: tuple[int, ...], channels: int, **attributes: Any) -> Graph:
    """One layer with bias over 4 input channels."""
    net = Net(4, *sizes)
    output = net.op(op, "x", net.weight("w", *weight), net.weight("b", channels), name="layer", **attributes)
    return net.graph(output, example=data(3, 4, *sizes), ranks=[2 + len(sizes)])


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    """Spatial sizes, groups, and a window that fits; pads differ from side to side."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int, count: int = rank) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=count, max_size=count)))

    return {
        "sizes": each(5, 7),
        "kernel": each(1, 3),
        "strides": each(1, 3),
        "dilations": each(1, 2),
        "pads": each(0, 2, 2 * rank),
        "group": draw(st.sampled_from([1, 2, 4])),
    }


@settings(max_examples=30, deadline=None, derandomize=True)
@given(windows(), st.sampled_from([4, 8]))
def test_convolutions(window: dict[str, Any], channels: int) -> None:
    sizes, kernel = window.pop("sizes"), window.pop("kernel")
    graph = convolution("Conv", sizes, (channels, 4 // window["group"], *kernel), channels, **window)
    assert_the_product_is_the_layer(graph, data(3, 4, *sizes), 1)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(windows(), st.sampled_from([1, 3]), st.booleans())
def test_transposed_convolutions(window: dict[str, Any], outputs: int, padded: bool) -> None:
    sizes, kernel = window.pop("sizes"), window.pop("kernel")
    limits = [max(s, d) - 1 for s, d in zip(window["strides"], window["dilations"], strict=True)]
    more = limits if padded else [0] * len(sizes)
    assume(all(m < s for m, s in zip(more, window["strides"], strict=True)))
    channels = outputs * window["group"]
    graph = convolution("ConvTranspose", sizes, (4, outputs, *kernel), channels, output_padding=more, **window)
    assert_the_product_is_the_layer(graph, data(3, 4, *sizes), 1)


@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize(
    "attributes", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [11, 10]}]
)
def test_transposed_convolutions_that_say_how_large_their_output_is(kernel: int, attributes: dict[str, Any]) -> None:
    graph = convolution("ConvTranspose", (5, 5), (4, 3, kernel, kernel), 3, strides=[2, 2], **attributes)
    assert_the_product_is_the_layer(graph, data(2, 4, 5, 5), 1)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [6, 7])
def test_convolutions_that_pad_by_themselves(mode: str, size: int) -> None:
    graph = convolution("Conv", (size, size), (4, 4, 3, 3), 4, auto_pad=mode, strides=[2, 2])
    assert_the_product_is_the_layer(graph, data(2, 4, size, size), 1)


def test_depthwise_convolution_has_a_group_a_channel() -> None:
    graph = convolution("Conv", (6, 6), (4, 1, 3, 3), 4, group=4, pads=[1] * 4)
    matrix = only_matrix(graph)
    assert matrix.rows(graph.weight("w")).shape == (4, 1, 9)
    assert matrix.columns(data(2, 4, 6, 6)["x"], EVERYTHING, np.random.default_rng(0)).shape == (2 * 36, 4, 9)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm(transposed: int, bias: bool) -> None:
    net = Net(6)
    weight = net.weight("w", *((5, 6) if transposed else (6, 5)))
    output = net.op("Gemm", "x", weight, *([net.weight("b", 5)] if bias else []), transB=transposed)
    assert_the_product_is_the_layer(net.graph(output, example=data(3, 6), ranks=[2]), data(7, 6), 1)


def test_matmul_of_tokens() -> None:
    net = Net(9, 6)
    graph = net.graph(net.op("MatMul", "x", net.weight("w", 6, 5)), example=data(3, 9, 6), ranks=[3])
    assert_the_product_is_the_layer(graph, data(4, 9, 6), 2)


def test_gemm_of_transposed_data() -> None:
    net = Net(6)
    rows = net.op("Gemm", net.op("Transpose", "x", perm=[1, 0], name="t"), net.weight("w", 6, 5), transA=1, name="g")
    graph = net.graph(rows, example=data(3, 6))
    matrix = only_matrix(graph)
    columns = matrix.columns(data(7, 6)["x"].T, EVERYTHING, np.random.default_rng(0))
    np.testing.assert_array_equal(columns[:, 0], data(7, 6)["x"])


@pytest.mark.parametrize(("op", "weight"), [("Conv", (8, 2, 3, 3)), ("ConvTranspose", (4, 3, 3, 3))])
def test_scales_stand_beside_the_rows_of_their_channels(op: str, weight: tuple[int, ...]) -> None:
    """Rows in units of their scales are the weight in units of its own; a ConvTranspose's groups share scales."""
    graph = convolution(op, (6, 6), weight, 8 if op == "Conv" else 6, group=2)
    matrix = only_matrix(graph)
    axis = matrix.layer.channel_axis
    scale = np.arange(1, weight[axis] + 1, dtype=np.float32)
    shape = [-1 if i == axis else 1 for i in range(len(weight))]
    want = graph.weight("w") * scale.reshape(shape)
    np.testing.assert_allclose(matrix.weight(matrix.rows(graph.weight("w")) * matrix.by_row(scale)), want, rtol=1e-6)


def test_positions_are_drawn_by_the_generator_alone() -> None:
    """So that FP32 and INT8 inputs are looked at in the same places."""
    net = Net(4, 8, 8)
    matrix = only_matrix(net.graph(net.conv("x", 4), example=images(3, 4), ranks=[4]))
    x = images(3, 4)["x"]
    every = matrix.columns(x, EVERYTHING, np.random.default_rng(0))
    first, same, other = (matrix.columns(x, 20, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    np.testing.assert_array_equal(2 * first, matrix.columns(2 * x, 20, np.random.default_rng(1)))
    assert not np.array_equal(first, other)
    assert len(every) == 3 * 8 * 8
    known = {sample.tobytes() for sample in every}
    assert len(first) == 20 == len({sample.tobytes() for sample in first} & known)
