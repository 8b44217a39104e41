"""Bias correction: rounding the weights leaves the mean output of a layer where it was."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mixq import affine
from mixq.config import LayerScheme, Precision, RecipeStep, uniform
from mixq.graph import Graph, serialize
from mixq.graph.lower import lower
from mixq.graph.plan import make_plan
from mixq.ptq import Material, Prepared, Quantizer, parameters
from mixq.ptq.bias_correction import BiasCorrection
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import Net, images, ort_run, residual

ORT = get_runtime("onnxruntime")
RECIPE = (RecipeStep(name="calibrate"), RecipeStep(name="bias_correction"))


def positive(rows: int) -> dict[str, Array]:
    """Inputs whose mean is far from zero."""
    return {name: np.abs(value) + 1 for name, value in images(rows, 6).items()}


MATERIAL = Material([positive(16)], ort_run, ORT.placement)


@cache
def pointwise() -> Graph:
    """Two 1 × 1 convolutions of 4 groups and of none, one that is given no bias, and a linear one."""
    net = Net(6, 8, 8)
    first = net.op("Relu", net.conv("x", 6, "first", kernel=1))
    second = net.op("Relu", net.conv(first, 6, "second", kernel=1, groups=3))
    bare = net.op("Relu", net.op("Conv", second, net.weight("bare.weight", 6, 6, 1, 1), name="bare"))
    return net.graph(net.gemm(net.pooled(bare), 6, 5, "head"), example=images(3, 6))


@cache
def corrected() -> Prepared:
    return Quantizer(pointwise(), MATERIAL).prepared(RECIPE)


def test_the_mean_output_of_the_first_layer_is_kept() -> None:
    """Its input, x̂, is that of the task rounded to codes; in float64, no code of ours."""
    found, layer = corrected(), pointwise().by_name["first"]
    data = affine.fake_quantize(MATERIAL.batches[0]["x"], affine.asymmetric(*found.ranges["x"]), affine.U8)
    mean = data.astype(np.float64).mean((0, 2, 3))
    exact, rounded = (
        w[:, :, 0, 0].astype(np.float64) for w in (pointwise().weight(layer.weight), found.rounded("first"))
    )
    bias, changed = pointwise().weight(str(layer.bias)), found.values["first", 2]
    want = exact @ mean + bias
    before, after = np.abs(rounded @ mean + bias - want).max(), np.abs(rounded @ mean + changed - want).max()
    assert after < 1e-5
    assert before > 100 * after


@pytest.mark.parametrize("layer", ["first", "second", "bare", "head"])
def test_the_change_is_of_the_size_of_rounding(layer: str) -> None:
    found, known = corrected(), pointwise().by_name[layer]
    change = np.abs(found.values[layer, 2] - pointwise().weight(str(known.bias)))
    columns = int(np.prod(known.weight_shape[1:]))
    most_step = found.weight_qparams(layer).scale.max()
    largest_input = max(high for _, high in found.ranges.values())
    assert 0 < change.max() <= columns * most_step * largest_input


def test_only_biases_change() -> None:
    assert corrected().values.keys() == {("first", 2), ("second", 2), ("bare", 2), ("head", 2)}
    calibrated = Quantizer(pointwise(), MATERIAL).prepared(RECIPE[:1])
    for name in pointwise().layer_names:
        np.testing.assert_array_equal(corrected().weight(name), calibrated.weight(name))


def test_weights_without_rounding_error_leave_biases_alone() -> None:
    """Every weight is an integer times 2^−7, the largest of a channel 127 of them, and no pair more than that."""
    net = Net(6, 8, 8)
    weight = net.random.integers(-63, 64, (6, 6, 1, 1)).astype(np.float32) / 128
    weight[:, 0], weight[:, 1] = 127 / 128, -np.abs(weight[:, 1])
    output = net.op("Conv", "x", net.constant("w", weight), net.weight("b", 6), name="only")
    graph = net.graph(output, example=images(3, 6), ranks=[4])
    calibrate = RecipeStep(name="calibrate", params={"weights": "minmax"})
    found = Quantizer(graph, MATERIAL).prepared((calibrate, RECIPE[1]))
    np.testing.assert_array_equal(found.values["only", 2], graph.weight("b"))


def test_the_factors_of_a_gemm_count() -> None:
    """y = α x W + β b."""
    net = Net(6)
    weight, bias = net.weight("w", 6, 5), net.weight("b", 5)
    graph = net.graph(net.op("Gemm", "x", weight, bias, name="only", alpha=0.5, beta=4.0), example={"x": rows(3)})
    found = Quantizer(graph, Material([{"x": rows(64)}], ort_run, ORT.placement)).prepared(RECIPE)
    data = affine.fake_quantize(rows(64), affine.asymmetric(*found.ranges["x"]), affine.U8)
    mean = data.astype(np.float64).mean(0)
    want = 0.5 * mean @ graph.weight("w") + 4.0 * graph.weight("b")
    np.testing.assert_allclose(0.5 * mean @ found.rounded("only") + 4.0 * found.values["only", 2], want, atol=1e-5)


def rows(count: int) -> Array:
    return np.abs(np.random.default_rng(0).normal(size=(count, 6))).astype(np.float32)


def test_running_it_again_changes_next_to_nothing() -> None:
    """x̂ behind a corrected layer is another; nothing else is."""
    again = BiasCorrection().apply(corrected(), MATERIAL)
    np.testing.assert_array_equal(again.values["first", 2], corrected().values["first", 2])
    for key, value in corrected().values.items():
        change = value - pointwise().weight(str(pointwise().by_name[key[0]].bias))
        assert np.abs(again.values[key] - value).max() <= 0.05 * np.abs(change).max()


def test_the_same_every_time() -> None:
    recipe = (RecipeStep(name="calibrate"), RecipeStep(name="adaround"), RecipeStep(name="bias_correction"))
    material = Material([images(16, name="image")], ort_run, ORT.placement)
    first, second = (Quantizer(residual(), material).prepared(recipe) for _ in range(2))
    for key, value in first.values.items():
        np.testing.assert_array_equal(second.values[key], value)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_what_is_added_behind_a_matmul_is_corrected_as_its_bias(runtime: str) -> None:
    """The mean over many rows of what the runtime's integer kernel gives comes nearer to float's."""
    net = Net(6, 8, 8)
    net.op("MatMul", "x", net.weight("w", 8, 5), name="product")
    net.op("Add", "product", net.weight("b", 5), name="y")
    data = positive(64)
    graph, compiler = net.graph("y", example=data, ranks=[4]), get_runtime(runtime)
    assert not graph.by_name["product"].adds_bias
    prepared = Quantizer(graph, Material([data], ort_run, compiler.placement)).prepared(RECIPE)
    plan = make_plan(graph, ["product"], compiler.placement)
    int8 = uniform(graph.fingerprint, ["product"], LayerScheme(precision=Precision.INT8))
    found = parameters(prepared, plan, ["product"])
    want, shift = ort_run(serialize(graph.model))(data)["y"], {}
    for name, values in (("corrected", found.values), ("not", {})):
        model = lower(graph, int8, plan, replace(found, values=values))
        got = compiler.compile(serialize(model), 1).run(data)["y"]
        shift[name] = np.abs((got - want).mean((0, 1, 2))).max()
    assert shift["corrected"] < 0.3 * shift["not"]
