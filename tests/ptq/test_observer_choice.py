""" "best": for each tensor the observer of least error at the outputs of the layers that read it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from mixq import affine
from mixq.calibration import OBSERVERS, get_observer
from mixq.config import RecipeStep
from mixq.graph import Graph, serialize
from mixq.graph.model import with_outputs
from mixq.graph.plan import make_plan
from mixq.ptq import Material, Prepared, Quantizer
from mixq.runtimes import NAMES, get_runtime
from mixq.task import Array
from tests.helpers import Net, ort_run, reference_run

Range = tuple[float, float]


def heavy_tailed(rows: int, seed: int = 0) -> dict[str, Array]:
    """Values of which few lie far out: there the observers differ."""
    return {"x": np.random.default_rng(seed).standard_t(2.2, size=(rows, 4, 8, 8)).astype(np.float32)}


BATCH = heavy_tailed(64)


@cache
def network() -> Graph:
    """1 × 1 convolutions: a branching stem, a Concat of the branches, a classifier."""
    net = Net(4, 8, 8)
    stem = net.op("Relu", net.conv("x", 6, "stem", kernel=1))
    left = net.op("Relu", net.conv(stem, 4, "left", kernel=1))
    right = net.op("Relu", net.conv(stem, 4, "right", kernel=1))
    last = net.conv(net.op("Concat", left, right, axis=1), 5, "last", kernel=1)
    return net.graph(net.gemm(net.pooled(net.op("Relu", last)), 5, 3, "head"), example=heavy_tailed(3))


@cache
def prepared(activations: str, runtime: str = "onnxruntime") -> Prepared:
    material = Material([BATCH], ort_run, get_runtime(runtime).placement)
    step = RecipeStep(name="calibrate", params={"activations": activations})
    return Quantizer(network(), material).prepared((step,))


@cache
def tensors() -> dict[str, Array]:
    names = [layer.input for layer in network().layers if layer.input != "x"]
    return {**BATCH, **reference_run(serialize(with_outputs(network().model, names)))(BATCH)}


def output_error(layer: str, ranges: list[Range]) -> float:
    """Relative squared error at the output of a layer whose input has the hull of `ranges`."""
    known = network().by_name[layer]
    x = tensors()[known.input]
    qparams = affine.asymmetric(min(low for low, _ in ranges), max(high for _, high in ranges))
    weight = network().weight(known.weight).reshape(known.weight_shape[:2])
    flat = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    noise = np.moveaxis(affine.fake_quantize(x, qparams, affine.U8) - x, 1, -1).reshape(flat.shape)
    return float(np.square(noise @ weight.T).sum() / np.square(flat @ weight.T).sum())


@pytest.mark.parametrize("runtime", NAMES)
def test_no_observer_alone_leaves_less_error_behind_a_tensor(runtime: str) -> None:
    plan = make_plan(network(), network().layer_names, get_runtime(runtime).placement)
    for group in plan.groups:
        readers = [name for name, tensors in plan.inputs.items() if set(tensors) & set(group)]
        if not readers:
            continue

        def error(observer: str, group: tuple[str, ...] = group, readers: list[str] = readers) -> float:
            ranges = prepared(observer, runtime).ranges
            return sum(output_error(name, [ranges[tensor] for tensor in group]) for name in readers)

        assert error("best") <= min(map(error, OBSERVERS)) * 1.001, group


@pytest.mark.parametrize("runtime", NAMES)
def test_every_range_is_an_observers_and_groups_share_theirs(runtime: str) -> None:
    found = prepared("best", runtime)
    assert found.ranges.keys() == found.statistics.tensors.keys()
    chosen = {
        tensor: {name for name in OBSERVERS if get_observer(name).range(found.statistics.tensors[tensor]) == value}
        for tensor, value in found.ranges.items()
    }
    assert all(chosen.values())
    for group in make_plan(network(), network().layer_names, get_runtime(runtime).placement).groups:
        assert set.intersection(*(chosen[tensor] for tensor in group)), group


def test_the_choice_matters_here() -> None:
    """Else the tests above would show nothing: observers differ, and none serves all tensors best."""
    assert len({prepared(name).ranges["x"] for name in OBSERVERS}) >= 3
    best = prepared("best").ranges
    assert output_error("stem", [best["x"]]) < 0.97 * output_error("stem", [prepared("minmax").ranges["x"]])
    for name in OBSERVERS:
        assert best != prepared(name).ranges


def test_the_same_every_time() -> None:
    material = Material([BATCH, heavy_tailed(8, 1)], ort_run, get_runtime("onnxruntime").placement)
    step = RecipeStep(name="calibrate", params={"activations": "best"})
    first, second = (Quantizer(network(), material).prepared((step,)).ranges for _ in range(2))
    assert first == second
