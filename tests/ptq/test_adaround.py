"""AdaRound: descent to where no single flip helps, held against brute force; the step on a small network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq import affine, measures
from mixq.config import RecipeStep
from mixq.graph import Run, serialize
from mixq.ptq import Material, Prepared, Quantizer, moments
from mixq.ptq.adaround import BLOCK, AdaRound, descend
from mixq.ptq.networks import int8_model
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import Net, images, ort_run, residual

ORT = get_runtime("onnxruntime")
MATERIAL = Material([images(64, name="image")], ort_run, ORT.placement)
CALIBRATE = RecipeStep(name="calibrate")
SWEEPS = 1000  # enough to come to rest

Problem = tuple[Array, Array, Array]


def problem(seed: int, groups: int, rows: int, columns: int, spread: float = 3.0, drift: float = 0.1) -> Problem:
    """wanted, form, drift: correlated inputs, few samples."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, 4 * columns, columns)) + rng.normal(size=(groups, 4 * columns, 1))
    form = np.matmul(inputs.transpose(0, 2, 1), inputs) / (4 * columns)
    return rng.normal(size=(groups, rows, columns)) * spread, form, rng.normal(size=(groups, rows, columns)) * drift


def objective(codes: Array, wanted: Array, form: Array, drift: Array) -> Array:
    """e H eᵀ + 2 e·d by row, in float64."""
    error = codes.astype(np.float64) - wanted
    return np.asarray(np.einsum("grc,gcd,grd->gr", error, form, error) + 2 * (error * drift).sum(-1))


def low_and_high(wanted: Array) -> tuple[Array, Array]:
    return np.clip(np.floor(wanted), *affine.S8), np.clip(np.ceil(wanted), *affine.S8)


def flipped(codes: Array, wanted: Array, column: int) -> Array:
    low, high = low_and_high(wanted)
    other = codes.copy()
    other[..., column] = (low + high - codes)[..., column]
    return other


problems = st.builds(
    problem,
    seed=st.integers(0, 10**6),
    groups=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 12),
    spread=st.sampled_from([0.4, 3.0, 100.0]),  # the last beyond what codes hold
    drift=st.sampled_from([0.0, 0.1, 2.0]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems)
def test_descent_ends_where_no_flip_helps(found: Problem) -> None:
    wanted = found[0]
    codes = descend(*found, SWEEPS).astype(np.float64)
    low, high = low_and_high(wanted)
    assert ((codes == low) | (codes == high)).all()
    reached = objective(codes, *found)
    slack = 1e-3 + 1e-5 * np.abs(reached)  # descent is in float32
    assert (reached <= objective(np.clip(np.rint(wanted), *affine.S8), *found) + slack).all()
    for column in range(wanted.shape[-1]):
        assert (objective(flipped(codes, wanted, column), *found) >= reached - slack).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_blocks_are_kept_up_to_date_with_each_other(seed: int) -> None:
    found = problem(seed, 1, 3, BLOCK + 40)
    codes = descend(*found, SWEEPS).astype(np.float64)
    reached = objective(codes, *found)
    assert (reached <= objective(np.rint(found[0]), *found) + 1e-2).all()
    for column in range(0, BLOCK + 40, 7):
        assert (objective(flipped(codes, found[0], column), *found) >= reached - 1e-2).all()


def test_every_further_sweep_lowers_the_objective() -> None:
    found = problem(0, 2, 5, 60)
    reached = [objective(descend(*found, sweeps), *found).sum() for sweeps in range(1, 6)]
    assert all(later <= earlier + 1e-6 for earlier, later in pairwise(reached))
    assert reached[-1] < objective(np.rint(found[0]), *found).sum()


def best(wanted: Array, form: Array, drift: Array) -> float:
    """The least objective of one row, by trying all codes."""
    low, high = low_and_high(wanted)
    every = np.array(list(product((0, 1), repeat=wanted.shape[-1])))
    codes = low + every * (high - low)[0]
    return float(objective(codes, wanted, form, np.broadcast_to(drift, codes.shape)).min())


def test_descent_is_near_the_optimum() -> None:
    """Never below brute force's; of what nearest rounding loses to it, most is won."""
    lost, left = [], []
    for seed in range(100):
        found = problem(seed, 1, 1, 8)
        least = best(*found)
        reached = float(objective(descend(*found, SWEEPS), *found).sum())
        assert reached >= least - 1e-4
        left.append(reached - least)
        lost.append(float(objective(np.rint(found[0]), *found).sum()) - least)
    assert np.sum(left) < 0.4 * np.sum(lost)
    assert np.mean(np.array(left) < 1e-4) > 1.5 * np.mean(np.array(lost) < 1e-4)


def test_uncorrelated_inputs_are_rounded_to_the_nearest() -> None:
    """Closed form: with H diagonal and no drift each weight stands for itself."""
    wanted, _, _ = problem(0, 2, 3, 20)
    form = np.stack([np.diag(np.linspace(0.1, 2, 20))] * 2)
    np.testing.assert_array_equal(descend(wanted, form, np.zeros_like(wanted), SWEEPS), np.rint(wanted))


@pytest.mark.parametrize("bad", [{"sweeps": 0}, {"drift": 1.5}, {"drift": -0.1}, {"shrinkage": 2.0}])
def test_parameters_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sweeps must be at least 1, drift and shrinkage from 0 to 1"):
        AdaRound(**bad)  # type: ignore[arg-type]


@cache
def prepared(*steps: RecipeStep) -> Prepared:
    return Quantizer(residual(), MATERIAL).prepared((CALIBRATE, *steps))


def output_error(found: Prepared) -> float:
    """Relative, of the whole network in INT8, on images that calibration has not seen."""
    model = serialize(int8_model(found, MATERIAL))
    new = images(256, seed=9, name="image")
    return measures.relative_mse(ort_run(serialize(residual().model))(new), ort_run(model)(new))


def test_the_network_comes_closer_to_fp32() -> None:
    assert output_error(prepared(RecipeStep(name="adaround"))) < 0.8 * output_error(prepared())


def transposed(net: Net) -> str:
    weight = net.weight("w", 6, 2, 4, 4)
    return net.op("ConvTranspose", "x", weight, net.weight("b", 6), group=3, strides=[2, 2], pads=[1] * 4)


LAYERS: dict[str, Callable[[Net], str]] = {
    "depthwise": lambda net: net.conv("x", 6, groups=6),
    "strided": lambda net: net.conv("x", 8, groups=2, strides=[2, 2]),
    "transposed": transposed,
    "matmul": lambda net: net.op("MatMul", "x", net.weight("w", 8, 12)),
}


def openvino_run(model: bytes) -> Run:
    """Its outputs are not rounded, as those of ONNX Runtime's convolutions are: what is left is the weights' error."""
    return get_runtime("openvino").compile(model, 1).run


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_every_kind_of_layer_comes_closer_to_fp32(build: Callable[[Net], str]) -> None:
    """Inputs with a mean are correlated, so that rounding to the nearest is far from the best."""
    net = Net(6, 8, 8)
    graph = net.graph(build(net), example=images(3, 6), ranks=[4])
    data = {"x": np.abs(images(32, 6)["x"]) + 1}
    material = Material([data], openvino_run, get_runtime("openvino").placement)
    quantizer, want = Quantizer(graph, material), ort_run(serialize(graph.model))(data)
    nearest, rounded = (
        measures.relative_mse(want, openvino_run(serialize(int8_model(quantizer.prepared(recipe), material)))(data))
        for recipe in ((CALIBRATE,), (CALIBRATE, RecipeStep(name="adaround")))
    )
    assert rounded < 0.9 * nearest


def test_weights_are_their_codes_values_next_to_the_graphs_own() -> None:
    found = prepared(RecipeStep(name="adaround"))
    assert found.values.keys() == {(name, index) for name in residual().layer_names for index in (1, 2)}
    moved = 0
    for layer in residual().layers:
        own, rounded = residual().weight(layer.weight), found.weight(layer.name)
        np.testing.assert_allclose(found.rounded(layer.name), rounded, rtol=1e-6)
        scale = affine.along(found.weight_qparams(layer.name).scale, layer.channel_axis, own.ndim)
        inside = np.abs(own) <= 127 * scale
        assert (np.abs(rounded - own) < 1.0001 * scale)[inside].all()
        moved += int((rounded != prepared().rounded(layer.name)).sum())
    assert moved > 0


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_the_bias_takes_the_mean_of_the_error(build: Callable[[Net], str]) -> None:
    """With all of the input's own error made up for, each channel's mean output is FP32's; a MatMul has no bias."""
    net = Net(6, 8, 8)
    graph = net.graph(build(net), example=images(3, 6), ranks=[4])
    data = {"x": np.abs(images(32, 6)["x"]) + 1}
    material = Material([data], openvino_run, get_runtime("openvino").placement)
    recipe = (CALIBRATE, RecipeStep(name="adaround", params={"drift": 1.0}))
    found = Quantizer(graph, material).prepared(recipe)
    (have,), (want,) = (
        run(data).values() for run in (openvino_run(model_of(found, material)), ort_run(serialize(graph.model)))
    )
    if graph.layers[0].bias is None:
        assert not any(index == 2 for _, index in found.values)
    else:
        error = have.astype(np.float64) - want
        assert np.abs(error.mean((0, 2, 3))).max() < 0.02 * error.std()


def model_of(found: Prepared, material: Material) -> bytes:
    return serialize(int8_model(found, material))


def test_bias_correction_leaves_its_biases_alone() -> None:
    found, corrected = (
        prepared(RecipeStep(name="adaround"), *more) for more in ((), (RecipeStep(name="bias_correction"),))
    )
    assert corrected.values.keys() == found.values.keys()
    for key, value in found.values.items():
        np.testing.assert_array_equal(corrected.values[key], value)


def test_the_same_every_time_and_when_run_again() -> None:
    first = prepared(RecipeStep(name="adaround"))
    second = Quantizer(residual(), MATERIAL).prepared((CALIBRATE, RecipeStep(name="adaround")))
    again = AdaRound().apply(first, MATERIAL)
    for key, value in first.values.items():
        np.testing.assert_array_equal(second.values[key], value)
        np.testing.assert_array_equal(again.values[key], value)


def test_tells_which_layer_it_rounds() -> None:
    lines: list[str] = []
    AdaRound(sweeps=1).apply(prepared(), Material(MATERIAL.batches, ort_run, ORT.placement, progress=lines.append))
    assert lines[0] == "rounding layer 1/4: stem"
    assert len(lines) == 4


@pytest.mark.parametrize("most", [7, 12, 24, 30])
def test_layers_with_many_columns_are_rounded_in_parts(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """27 columns in each of 2 groups: still no worse than to the nearest."""
    net = Net(6, 8, 8)
    graph = net.graph(net.conv("x", 4, "layer", kernel=3, groups=2), example=images(2, 6), ranks=[4])
    material = Material([images(64, 6)], ort_run, ORT.placement)
    nearest = Quantizer(graph, material).prepared((CALIBRATE,))

    def error(recipe: tuple[RecipeStep, ...]) -> float:
        prepared = Quantizer(graph, material).prepared(recipe)
        found = ort_run(serialize(int8_model(prepared, material)))(images(64, 6, seed=1))
        return measures.relative_mse(ort_run(serialize(graph.model))(images(64, 6, seed=1)), found)

    monkeypatch.setattr(moments, "MOST_COLUMNS", most)
    recipe = (CALIBRATE, RecipeStep(name="adaround"))
    rounded = Quantizer(graph, material).prepared(recipe)
    step = nearest.weight_qparams("layer").scale.reshape(-1, 1, 1, 1)
    assert np.abs(rounded.weight("layer") - graph.weight("layer.weight")).max() <= step.max() * 1.001
    assert error(recipe) <= 1.02 * error((CALIBRATE,))


@pytest.mark.parametrize("shape", [(5, 2, 24), (1, 30), (3, 4, 7)])
def test_parts_are_joined_again(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MOST_COLUMNS", 7)
    values = np.random.default_rng(0).normal(size=shape)
    found = moments.in_parts(values)
    assert found.shape[-1] <= 7
    np.testing.assert_array_equal(moments.joined(found, shape[-1]), values)
