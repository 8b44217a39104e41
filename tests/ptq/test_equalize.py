"""Equalization: badly scaled channels no longer cost accuracy; what is equal already stays; the function is kept."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from mixq import measures
from mixq.config import RecipeStep
from mixq.errors import MixqError
from mixq.graph import Graph, serialize
from mixq.graph.branches import SUFFIX
from mixq.graph.layers import row_shapes
from mixq.graph.scaling import find_scale_groups, scaled
from mixq.ptq import Material, Prepared, Quantizer
from mixq.ptq.channel_ranges import common_reach
from mixq.ptq.equalize import Equalize
from mixq.ptq.networks import int8_model
from mixq.runtimes import get_runtime
from mixq.task import Array
from tests.helpers import Net, images, lowered, ort_run, residual, schemes
from tests.ptq.outliers import IMAGES, TOKENS, attention_inputs, opposed_stream

MATERIAL = Material([images(32, name="image")], ort_run, get_runtime("onnxruntime").placement)
CALIBRATE = RecipeStep(name="calibrate", params={"activations": "minmax"})
NEW = images(64, seed=5, name="image")


@cache
def badly_scaled() -> Graph:
    """The residual network with channels that lie up to 2^10 apart."""
    groups = find_scale_groups(residual(), row_shapes(residual().model, images(1, name="image")))
    random = np.random.default_rng(0)
    return scaled(residual(), [(group, np.exp2(random.uniform(-5, 5, group.channels))) for group in groups])


@cache
def prepared(graph: Graph, *steps: str) -> Prepared:
    return Quantizer(graph, MATERIAL).prepared((*(RecipeStep(name=name) for name in steps), CALIBRATE))


def outputs(graph: Graph) -> dict[str, Array]:
    return dict(ort_run(serialize(graph.model))(NEW))


def int8_error(found: Prepared) -> float:
    """Relative, at the outputs of the network in INT8."""
    return measures.relative_mse(outputs(residual()), ort_run(serialize(int8_model(found, MATERIAL)))(NEW))


def test_badly_scaled_channels_cost_no_more_than_well_scaled_ones() -> None:
    bad, mended = int8_error(prepared(badly_scaled())), int8_error(prepared(badly_scaled(), "equalize"))
    assert mended < 0.02 * bad
    assert mended < 2 * int8_error(prepared(residual()))


@pytest.mark.parametrize("residual", [False, True], ids=["folded", "on a branch"])
def test_outlier_channels_of_a_normalization_move_into_the_matrices_that_read_it(residual: bool) -> None:
    """What SmoothQuant (Xiao et al. 2023, section 4) is for: a few channels that lie far beyond all others."""
    graph = attention_inputs(residual=residual)
    material = Material([TOKENS], ort_run, get_runtime("onnxruntime").placement)
    want, error = dict(ort_run(serialize(graph.model))(TOKENS)), {}
    want.pop("sum", None)  # most of it is the normalization itself, which is exact
    for steps in ((CALIBRATE,), (RecipeStep(name="equalize"), CALIBRATE)):
        found = Quantizer(graph, material).prepared(steps)
        got = ort_run(serialize(int8_model(found, material)))(TOKENS)
        error[len(steps)] = measures.relative_mse(want, {name: got[name] for name in want})
    assert error[2] < 0.5 * error[1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("other", ["fp32", "int8"])
def test_with_scales_on_a_branch_integer_kernels_run_and_float_layers_are_exact(runtime: str, other: str) -> None:
    graph = attention_inputs(residual=True)
    config = schemes(graph, other, up="int8").model_copy(update={"recipe": (RecipeStep(name="equalize"), CALIBRATE)})
    model = lowered(graph, config, get_runtime(runtime), TOKENS)
    assert {node.op_type for node in model.proto.graph.node} >= {"Mul", "QuantizeLinear"}
    assert model.executed(TOKENS) == {"q": other, "k": other, "v": other, "up": "int8"}
    want, got = ort_run(serialize(graph.model))(TOKENS), model.executable.run(TOKENS)
    assert measures.relative_mse(want, got) < 1e-3
    assert other == "int8" or measures.relative_mse({"k": want["k"]}, {"k": got["k"]}) < 1e-10


def test_depthwise_layers_get_scales_of_their_own_where_these_cost_nothing() -> None:
    graph = opposed_stream()
    placement = get_runtime("openvino").placement
    want, error = ort_run(serialize(graph.model))(IMAGES), {}
    for fuse in (False, True):
        material = Material([IMAGES], ort_run, replace(placement, scales_fuse=fuse))
        found = Quantizer(graph, material).prepared((RecipeStep(name="equalize"), CALIBRATE))
        scales = {name for name in found.graph.nodes if name.endswith(SUFFIX)}
        assert scales == ({"first" + SUFFIX, "second" + SUFFIX} if fuse else set())
        error[fuse] = measures.relative_mse(want, ort_run(serialize(int8_model(found, material)))(IMAGES))
    assert error[True] < 0.3 * error[False]


def test_scales_before_depthwise_layers_stay_when_it_is_applied_again() -> None:
    graph, material = opposed_stream(), Material([IMAGES], ort_run, get_runtime("openvino").placement)
    once = Equalize().apply(Prepared(graph, material.observe(graph)), material)
    twice = Equalize().apply(once, material)
    assert [name for name in twice.graph.nodes if name.endswith(SUFFIX)] == ["first" + SUFFIX, "second" + SUFFIX]
    want, got = (ort_run(serialize(one.model))(IMAGES) for one in (graph, twice.graph))
    assert measures.relative_mse(want, got) < 1e-9


def leaning(*, kernel: int) -> Graph:
    """Channels that are positive or negative, behind a normalization."""
    net, sides = Net(4, 8, 8), np.array([1, -1, -1, 1, -1, 1], np.float32)
    numbers = {"scale": sides, "bias": 0.01 * sides, "mean": np.full(6, 0.02), "variance": np.ones(6)}
    constants = [net.constant(name, value.astype(np.float32)) for name, value in numbers.items()]
    normal = net.op("BatchNormalization", net.op("Relu", net.conv("x", 6, "first")), *constants, name="norm")
    return net.graph(net.conv(normal, 4, "second", kernel=kernel), example=IMAGES, ranks=[4])


def offset() -> Graph:
    """Channels that lie far from zero, on either side of it."""
    net = Net(4, 8, 8)
    bias = net.constant("far", np.array([20, -30, 5, 0, -10, 40], np.float32))
    first = net.op("Conv", "x", net.weight("first.weight", 6, 4, 3, 3), bias, name="first", pads=[1] * 4)
    net.channels[first] = 6
    return net.graph(net.conv(first, 4, "second", kernel=1), example=IMAGES, ranks=[4])


@pytest.mark.parametrize(
    ("graph", "without", "left"),
    [
        (leaning(kernel=3), "common_reach", 0.9),
        (leaning(kernel=1), "common_reach", 0.7),
        (offset(), "find_shift_places", 0.4),
    ],
    ids=["turned over", "turned over or shifted", "shifted"],
)
def test_channels_on_either_side_of_zero_use_all_codes(
    graph: Graph, without: str, left: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a sign or a shift a channel has the codes of one side only, or few of them."""
    plain = {
        "common_reach": lambda noises, most, turns: common_reach(noises, most, turns=False),
        "find_shift_places": lambda graph, groups: [],
    }
    material = Material([IMAGES], ort_run, MATERIAL.placement)
    want, error = ort_run(serialize(graph.model))(IMAGES), []
    for replaced in (False, True):
        if replaced:
            monkeypatch.setattr("mixq.ptq.equalize.find_shift_places", plain["find_shift_places"])
            monkeypatch.setattr(f"mixq.ptq.equalize.{without}", plain[without])
        found = Quantizer(graph, material).prepared((RecipeStep(name="equalize"), CALIBRATE))
        assert measures.relative_mse(want, ort_run(serialize(found.graph.model))(IMAGES)) < 1e-9
        error.append(measures.relative_mse(want, ort_run(serialize(int8_model(found, material)))(IMAGES)))
    assert error[0] < left * error[1]


def test_what_is_turned_over_and_shifted_stays_so_when_it_is_applied_again() -> None:
    for graph in (leaning(kernel=3), offset()):
        material = Material([IMAGES], ort_run, MATERIAL.placement)
        once = Equalize().apply(Prepared(graph, material.observe(graph)), material)
        twice = Equalize().apply(once, material)
        for before, after in zip(weights(once.graph), weights(twice.graph), strict=True):
            np.testing.assert_allclose(after, before, rtol=0.05, atol=0.05 * np.abs(before).max())


def weights(graph: Graph) -> list[Array]:
    return [graph.weight(str(name)) for layer in graph.layers for name in (layer.weight, layer.bias)]


@pytest.mark.parametrize("other", ["fp32", "int8"])
def test_with_scales_before_depthwise_layers_integer_kernels_run_and_float_layers_are_exact(other: str) -> None:
    graph, openvino = opposed_stream(), get_runtime("openvino")
    config = schemes(graph, other, second="int8").model_copy(
        update={"recipe": (RecipeStep(name="equalize"), CALIBRATE)}
    )
    model = lowered(graph, config, openvino, IMAGES)
    assert [node.name for node in model.proto.graph.node if node.name.endswith(SUFFIX)]
    assert model.executed(IMAGES) == {"stem": other, "first": other, "wide": other, "second": "int8", "last": other}
    want, got = ort_run(serialize(graph.model))(IMAGES), model.executable.run(IMAGES)
    assert measures.relative_mse(want, got) < 1e-3


@pytest.mark.parametrize("graph", [residual, badly_scaled])
def test_the_function_is_kept(graph: object) -> None:
    found = prepared(residual() if graph is residual else badly_scaled(), "equalize")
    assert measures.relative_mse(outputs(residual()), outputs(found.graph)) < 1e-9


def test_statistics_are_those_of_the_new_graph() -> None:
    found = Equalize().apply(Prepared(badly_scaled(), MATERIAL.observe(badly_scaled())), MATERIAL)
    again = MATERIAL.observe(found.graph)
    assert {n: (s.low, s.high) for n, s in found.statistics.tensors.items()} == {
        n: (s.low, s.high) for n, s in again.tensors.items()
    }
    assert (found.ranges, found.magnitudes, found.values) == ({}, {}, {})


def test_a_second_application_changes_next_to_nothing() -> None:
    once = Equalize().apply(Prepared(badly_scaled(), MATERIAL.observe(badly_scaled())), MATERIAL)
    twice = Equalize().apply(once, MATERIAL)
    for layer in badly_scaled().layers:
        before, between, after = (g.weight(layer.weight) for g in (badly_scaled(), once.graph, twice.graph))
        first, second = (spread(between, before), spread(after, between))
        assert second < 0.1 * max(first, 1.0), layer.name


def spread(after: Array, before: Array) -> float:
    """How many powers of two the factors of the weights lie apart."""
    logs = np.log2(np.abs(after[before != 0] / before[before != 0]))
    return float(np.ptp(logs))


def test_factors_keep_to_their_bounds() -> None:
    """A channel that is dead, or that nobody reads, keeps its scale; the others' stay within 2^±8."""
    net = Net(4, 8, 8)
    first = net.op("Relu", net.conv("x", 4, "first"))
    graph = net.graph(net.conv(first, 4, "second"), example=images(3, 4), ranks=[4])
    (group,) = find_scale_groups(graph, row_shapes(graph.model, images(1, 4)))
    bad = scaled(graph, [(group, np.array([1.0, 2.0**-30, 1.0, 2.0**30]))])
    material = Material([images(8, 4)], ort_run, MATERIAL.placement)
    equal = Equalize().apply(Prepared(bad, material.observe(bad)), material).graph
    ratio = np.abs(equal.weight("first.weight") / bad.weight("first.weight")).reshape(4, -1).mean(1)
    assert (ratio <= 2.0**8 * 1.001).all()
    assert (ratio >= 2.0**-8 / 1.001).all()
    assert np.ptp(np.log2(ratio)) > 10


def test_a_dead_channel_is_survived() -> None:
    net = Net(4, 8, 8)
    first = net.conv("x", 4, "first")
    graph = net.graph(net.conv(net.op("Relu", first), 4, "second"), example=images(3, 4), ranks=[4])
    (group,) = find_scale_groups(graph, row_shapes(graph.model, images(1, 4)))
    dead = scaled(graph, [(group, np.array([1, 1, 1, 1e30]))])  # divided by so much, the first weight is nothing
    material = Material([images(8, 4)], ort_run, MATERIAL.placement)
    equal = Equalize().apply(Prepared(dead, material.observe(dead)), material).graph
    assert all(np.isfinite(equal.weight(layer.weight)).all() for layer in equal.layers)


def test_a_network_without_groups_is_left_as_it_is() -> None:
    net = Net(4, 8, 8)
    graph = net.graph(net.conv("x", 4, "only"), example=images(3, 4), ranks=[4])
    material = Material([images(8, 4)], ort_run, MATERIAL.placement)
    found = Equalize().apply(Prepared(graph, material.observe(graph)), material).graph
    assert found.fingerprint == graph.fingerprint


def test_another_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph, factors: object) -> Graph:
        other = Net(3, 8, 8, name="image", seed=1)
        output = other.gemm(other.pooled(other.conv("image", 8)), 8, 5, name=str(graph.model.graph.outputs[0].name))
        return other.graph(output, example=images(3, name="image"))

    monkeypatch.setattr("mixq.ptq.equalize.scaled", wrong)
    with pytest.raises(MixqError, match=r"equalize changed the output .* of its largest value; leave the step out"):
        Equalize().apply(Prepared(residual(), MATERIAL.observe(residual())), MATERIAL)
