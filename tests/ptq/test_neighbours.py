"""Pairs of neighbouring weights: against 16-bit sums written out, and on this CPU's kernels with the largest codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq import affine
from mixq.config import RecipeStep, Training
from mixq.graph import Graph, Layer, serialize
from mixq.ptq import Material, Prepared, Quantizer
from mixq.ptq.neighbours import pair_sums
from mixq.qat import Lessons, Trainer
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array
from tests.helpers import Net, lowered, ort_run, schemes
from tests.qat.networks import all_qat

PLACEMENT = replace(get_runtime("onnxruntime").placement, sums_saturate=True)
ALIKE = 0.9  # the share that all weights of a channel have in common: pairs of them are twice as large as each


def alike(net: Net, name: str, *shape: int) -> str:
    """Weights near one another, so that whole channels have the largest codes."""
    weight = ALIKE + (1 - ALIKE) * net.random.random(shape)
    return net.constant(name, (weight * net.random.choice([-1, 1], (shape[0], *[1] * (len(shape) - 1)))).astype("f4"))


def network(op: str, inputs: int, outputs: int, groups: int = 1, kernel: int = 3) -> tuple[Graph, dict[str, Array]]:
    """One layer, and inputs that are all but 1."""
    if op in ("Gemm", "MatMul"):
        net, shape = Net(inputs), (inputs, outputs) if op == "MatMul" else (outputs, inputs)
        output = net.op(op, "x", alike(net, "w", *shape), name="layer", **({"transB": 1} if op == "Gemm" else {}))
    else:
        net = Net(inputs, 6, 6)
        shape = (inputs, outputs // groups) if op == "ConvTranspose" else (outputs, inputs // groups)
        weight = alike(net, "w", *shape, kernel, kernel)
        output = net.op(op, "x", weight, name="layer", group=groups, pads=[kernel // 2] * 4)
    sizes = () if op in ("Gemm", "MatMul") else (6, 6)
    rows = {"x": (0.9 + 0.1 * np.random.default_rng(1).random((4, inputs, *sizes))).astype(np.float32)}
    return net.graph(output, example=rows, ranks=[2 + len(sizes)]), rows


def pairs_of(layer: Layer, codes: Array) -> Iterator[tuple[int, int]]:
    """Every two codes that a kernel multiplies and adds at once, element by element."""
    if layer.op in ("Gemm", "MatMul"):
        for channel in codes if layer.channel_axis == 0 else codes.T:
            yield from zip(channel[::2], channel[1::2], strict=False)
        return
    inputs = codes.shape[0] // layer.groups if layer.op == "ConvTranspose" else codes.shape[1]
    for first in range(0, codes.shape[1 - layer.channel_axis], inputs):
        for channel in range(codes.shape[layer.channel_axis]):
            for place in np.ndindex(*codes.shape[2:]):
                for one in range(first, first + inputs - 1, 2):
                    left, right = ((i, channel) if layer.channel_axis else (channel, i) for i in (one, one + 1))
                    yield codes[(*left, *place)], codes[(*right, *place)]


def codes_of(prepared: Prepared, layer: Layer) -> Array:
    weight = prepared.graph.by_name[layer.name]
    found = affine.quantize(prepared.weight(layer.name), prepared.weight_qparams(layer.name), affine.S8)
    assert found.shape == weight.weight_shape
    return found.astype(int)


def assert_sums_fit(prepared: Prepared, layer: Layer) -> None:
    """With the largest code of an input, 255, for both."""
    for left, right in pairs_of(layer, codes_of(prepared, layer)):
        assert -(2**15) <= 255 * left + 255 * right < 2**15


LAYERS = st.one_of(
    st.tuples(st.sampled_from(["Gemm", "MatMul"]), st.integers(1, 9), st.integers(2, 4), st.just(1)),
    st.tuples(st.sampled_from(["Conv", "ConvTranspose"]), st.integers(1, 6), st.integers(1, 3), st.integers(1, 2)).map(
        lambda found: (found[0], found[1] * found[3], found[2] * found[3], found[3])
    ),
)
RECIPES = {
    "minmax": (RecipeStep(name="calibrate", params={"weights": "minmax"}),),
    "mse": (RecipeStep(name="calibrate"),),
    "tensor": (RecipeStep(name="calibrate", params={"granularity": "tensor"}),),
    "adaround": (RecipeStep(name="calibrate"), RecipeStep(name="adaround")),
}


@pytest.mark.parametrize("recipe", RECIPES)
@settings(max_examples=25)
@given(found=LAYERS)
def test_no_pair_of_codes_leaves_16_bits(recipe: str, found: tuple[str, int, int, int]) -> None:
    graph, rows = network(*found)
    prepared = Quantizer(graph, Material([rows], ort_run, PLACEMENT)).prepared(RECIPES[recipe])
    assert_sums_fit(prepared, graph.layers[0])


def test_without_that_they_do() -> None:
    graph, rows = network("Conv", 8, 8)
    placement = replace(PLACEMENT, sums_saturate=False)
    prepared = Quantizer(graph, Material([rows], ort_run, placement)).prepared(RECIPES["minmax"])
    (layer,) = graph.layers
    assert max(abs(left + right) for left, right in pairs_of(layer, codes_of(prepared, layer))) > 200
    with_room = Quantizer(graph, Material([rows], ort_run, PLACEMENT)).prepared(RECIPES["minmax"])
    ratio = with_room.magnitudes["layer"] / prepared.magnitudes["layer"]
    assert ((ratio > 1.5) & (ratio <= 2.001)).all()  # half the range and not less, where all weights are alike


def test_depthwise_convolutions_keep_their_scales() -> None:
    """Their kernels add one product after the other."""
    graph, rows = network("Conv", 8, 8, groups=8)
    one, other = (
        Quantizer(graph, Material([rows], ort_run, replace(PLACEMENT, sums_saturate=saturate))).prepared(RECIPES["mse"])
        for saturate in (True, False)
    )
    np.testing.assert_array_equal(one.magnitudes["layer"], other.magnitudes["layer"])


@pytest.mark.parametrize("scales", [True, False])
def test_no_pair_leaves_16_bits_in_training(scales: bool) -> None:
    """Its steps are long enough to move weights by many codes."""
    net = Net(6, 6, 6)
    for index in range(2):
        weight = alike(net, f"w{index}", 6, 6, 3, 3)
        net.op("Conv", f"relu{index - 1}" if index else "x", weight, name=f"conv{index}", pads=[1] * 4)
        net.op("Relu", f"conv{index}", name=f"relu{index}")
    rows = {"x": np.random.default_rng(1).normal(size=(8, 6, 6, 6)).astype(np.float32)}
    graph = net.graph("relu1", example=rows, ranks=[4])
    quantizer = Quantizer(graph, Material([rows], ort_run, PLACEMENT))
    lessons = Lessons([rows], ort_run, lambda: serialize(graph.model))
    trainer = Trainer(quantizer, PLACEMENT, lessons, graph.layer_names, lambda _config: True)
    start = quantizer.prepared(RECIPES["mse"])
    trained = trainer.trained(all_qat(graph, Training(steps=30, learning_rate=1.0, scales=scales))).prepared
    for layer in graph.layers:
        assert np.count_nonzero(codes_of(trained, layer) != codes_of(start, layer)) > 10
        assert_sums_fit(trained, layer)


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "groups", "kernel"),
    [
        ("Conv", 16, 16, 1, 1),
        ("Conv", 16, 16, 1, 3),
        ("Conv", 3, 16, 1, 3),
        ("Conv", 5, 7, 1, 3),
        ("Conv", 1, 8, 1, 5),
        ("Conv", 16, 16, 2, 3),
        ("Conv", 16, 16, 16, 3),
        ("ConvTranspose", 16, 16, 1, 3),
        ("Gemm", 64, 32, 1, 1),
        ("Gemm", 33, 10, 1, 1),
        ("MatMul", 64, 32, 1, 1),
        ("MatMul", 7, 3, 1, 1),
    ],
)
def test_the_largest_codes_come_out_right_on_this_cpu(
    runtime: str, op: str, inputs: int, outputs: int, groups: int, kernel: int
) -> None:
    graph, rows = network(op, inputs, outputs, groups, kernel)
    found = get_runtime(runtime)
    config = schemes(graph, "int8")
    reason = found.refusal(config.schemes["layer"], graph.layers[0])
    if reason is not None:
        pytest.skip(reason)
    ready = lowered(graph, config, found, rows)
    assert ready.executed(rows) == {"layer": "int8"}
    (have,), (want,) = ready.executable.run(rows).values(), ort_run(serialize(graph.model))(rows).values()
    assert np.abs(have - want).max() < 0.02 * np.abs(want).max()


def test_sums_of_pairs_are_the_largest_of_a_channel() -> None:
    graph, _ = network("Conv", 4, 2, kernel=1)
    weight = np.array([[1, 2, -5, 1], [3, -3, 0, -4]], np.float32).reshape(2, 4, 1, 1)
    np.testing.assert_array_equal(pair_sums(weight, graph.layers[0]), [4, 4])
    graph, _ = network("MatMul", 3, 2)  # odd: any two that follow one another
    weight = np.array([[1, 1], [2, 3], [5, -9]], np.float32)
    np.testing.assert_array_equal(pair_sums(weight, graph.layers[0]), [7, 6])
