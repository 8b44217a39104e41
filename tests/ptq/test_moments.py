"""Moments against plain sums over patches that torch cuts out, of what the INT8 network really gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from mixq.config import RecipeStep
from mixq.graph import Graph, serialize
from mixq.graph.lower import lower
from mixq.graph.model import deserialize, with_outputs
from mixq.graph.plan import make_plan
from mixq.ptq import Material, Prepared, Quantizer, moments, parameters
from mixq.ptq.matrix import LayerMatrix
from mixq.ptq.moments import Moments, collect_moments, in_turn, matrices_of, mean_columns
from mixq.ptq.networks import Walk
from mixq.runtimes import get_runtime
from mixq.task import Array, Inputs
from tests.helpers import Net, images, ort_run, reference_run, schemes

BATCHES = (images(5, 4), images(3, 4, seed=1))
ORT = get_runtime("onnxruntime")
MATERIAL = Material(BATCHES, ort_run, ORT.placement)


@cache
def graph() -> Graph:
    net = Net(4, 8, 8)
    first = net.op("Relu", net.conv("x", 6, "first"))
    second = net.op("Relu", net.conv(first, 8, "second", groups=2))
    return net.graph(net.gemm(net.pooled(second), 8, 5, "head"), example=images(3, 4))


@cache
def prepared() -> Prepared:
    return Quantizer(graph(), MATERIAL).prepared((RecipeStep(name="calibrate"),))


def int8_inputs(layer: str, batch: Inputs) -> Array:
    """What `layer` reads in the INT8 network, by the ONNX reference evaluator."""
    plan = make_plan(graph(), graph().layer_names, ORT.placement)
    config = schemes(graph(), "int8")
    model = lower(graph(), config, plan, parameters(prepared(), plan, graph().layer_names))
    (name,) = [str(node.inputs[0].name) for node in model.graph if node.name == layer and node.inputs[0]]
    return reference_run(serialize(with_outputs(deserialize(serialize(model)), [name])))(batch)[name]


def float_inputs(layer: str, batch: Inputs) -> Array:
    """What `layer` reads in FP32."""
    name = graph().by_name[layer].input
    return {**batch, **reference_run(serialize(with_outputs(graph().model, [name])))(batch)}[name]


def patches(layer: str, data: Array) -> Array:
    """(positions, groups, columns) of a 3 × 3 convolution, or of a linear layer, by torch."""
    if data.ndim == 2:
        return data[:, None]
    found = torch.nn.functional.unfold(torch.from_numpy(data), 3, padding=1)  # rows, channels × 9, positions
    groups = {"first": 1, "second": 2}[layer]
    return found.permute(0, 2, 1).reshape(-1, groups, found.shape[1] // groups).numpy()


def matrix_of(layer: str) -> LayerMatrix:
    return matrices_of(graph(), graph().layers)[layer]


def collected(layer: str, material: Material = MATERIAL) -> Moments:
    inputs = Walk(graph(), material).inputs(prepared(), graph().by_name[layer])
    return collect_moments(inputs, matrix_of(layer), material)


@pytest.mark.parametrize("layer", ["first", "second", "head"])
def test_moments_are_the_plain_sums(layer: str) -> None:
    x = np.concatenate([patches(layer, float_inputs(layer, batch)) for batch in BATCHES]).astype(np.float64)
    q = np.concatenate([patches(layer, int8_inputs(layer, batch)) for batch in BATCHES]).astype(np.float64)
    found = collected(layer)
    assert found.count == len(x) == len(q)
    wanted = {"qq": np.einsum("sgi,sgj->gij", q, q), "xq": np.einsum("sgi,sgj->gij", x, q)}
    for name, want in wanted.items():
        np.testing.assert_allclose(getattr(found, name), want, atol=2e-3 * float(np.abs(want).max()), err_msg=name)
    mean = mean_columns(prepared(), MATERIAL, [graph().by_name[layer]])[layer]
    np.testing.assert_allclose(mean, q.mean(0), atol=2e-3 * float(np.abs(q).max()))


def test_the_quantized_input_is_not_the_exact_one() -> None:
    found = collected("second")
    assert not np.allclose(found.xq, found.qq, rtol=1e-5, atol=0)


def test_means_of_layers_seen_together_are_those_seen_alone() -> None:
    together = mean_columns(prepared(), MATERIAL, graph().layers)
    assert list(together) == graph().layer_names
    for layer in graph().layers:
        alone = mean_columns(prepared(), MATERIAL, [layer])
        np.testing.assert_allclose(alone[layer.name], together[layer.name], rtol=1e-5)


def test_means_are_over_the_positions_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "int8_inputs", lambda *_: lambda batch: {"first": batch["x"]})
    batches = (images(5, 4, size=6), images(3, 4, size=8), images(2, 4, size=6, seed=1))
    want = np.concatenate([patches("first", batch["x"]) for batch in batches]).mean(0)
    found = mean_columns(prepared(), Material(batches, ort_run, ORT.placement), [graph().by_name["first"]])
    np.testing.assert_allclose(found["first"], want, atol=1e-5)


def sampled(seed: int) -> Moments:
    return collected("second", Material(BATCHES, ort_run, ORT.placement, seed=seed))


def test_samples_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "SAMPLES", 40)
    first, same, other = sampled(1), sampled(1), sampled(2)
    assert first.count == 40
    np.testing.assert_array_equal(first.qq, same.qq)
    np.testing.assert_array_equal(first.xq, same.xq)
    assert not np.array_equal(first.qq, other.qq)


def test_samples_estimate_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampled(0)
    monkeypatch.setattr(moments, "SAMPLES", 240)
    part = sampled(0)
    assert part.count == 240 < whole.count
    scale = float(np.abs(whole.qq).max()) / whole.count
    np.testing.assert_allclose(part.qq / part.count, whole.qq / whole.count, atol=0.3 * scale)


def names(parts: Sequence[Sequence[object]]) -> list[int]:
    return [len(part) for part in parts]


def test_layers_come_in_order_and_few_at_a_time() -> None:
    parts = list(in_turn(graph().layers, MATERIAL, 2))
    assert names(parts) == [2, 1]
    assert [layer for part in parts for layer in part] == list(graph().layers)


def test_layers_that_do_not_fit_in_memory_together_come_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "MOST_BYTES", 1)
    assert names(list(in_turn(graph().layers, MATERIAL, 3))) == [1, 1, 1]
