"""Sensitivity: shadows against float64 convolutions, planted weak layers, and Kendall's τ against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.digits.task import Digits
from mixq.config import LayerScheme, Precision, RecipeStep, Stage
from mixq.evaluator import Evaluator
from mixq.graph import Layer, serialize
from mixq.runtimes import NAMES, get_runtime
from mixq.sensitivity import Sensitivity, SensitivityRow, analyze, first_rows, single
from mixq.shadow import SUFFIX, noise_name, shadow_graph, signal_name
from mixq.task import Array, Inputs
from tests import export_helpers
from tests.export_helpers import ROWS, Tiny, TinyNetwork

FP32, FP16, BF16, INT8 = (LayerScheme(precision=precision) for precision in Precision)
QAT = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
# With it, every range is the smallest and largest value seen: no choice of ours enters the oracle.
MINMAX = (RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"}),)


@cache
def digits() -> Evaluator:
    return Evaluator(Digits(), get_runtime("openvino"))


def inputs_of(network: torch.nn.Module, layer: str, batch: Array) -> torch.Tensor:
    """What the module `layer` reads when the network runs `batch`, in float64."""
    seen: list[torch.Tensor] = []
    hook = network.get_submodule(layer).register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    with torch.inference_mode():
        network(torch.from_numpy(batch))
    hook.remove()
    return seen[0].double()


def run_in_float64(layer: Layer, module: torch.nn.Module, x: torch.Tensor, w: torch.Tensor, b: Array) -> torch.Tensor:
    """The layer's op with these weights, and stride and padding of the module."""
    bias = torch.from_numpy(b.astype(np.float64))
    if isinstance(module, torch.nn.Conv2d):
        stride, padding = (module.stride[0], module.stride[1]), (module.kernel_size[0] // 2) * int(module.padding != 0)
        padded = padding if module.padding == (1, 1) else 0
        return torch.nn.functional.conv2d(x, w, bias, stride=stride, padding=padded)
    assert layer.op == "Gemm"
    return torch.nn.functional.linear(x, w, bias)


def to_int8(layer: Layer, x: torch.Tensor, w: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight rounded as the standard says: u8 over the range `seen`, s8 for each output channel."""
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    x = torch.clamp(torch.round(x / scale) + zero_point, 0, 255).sub(zero_point).mul(scale)
    scales = w.flatten(1).abs().amax(1).div(127).reshape(-1, *[1] * (w.ndim - 1))
    return x, torch.round(w / scales) * scales


def ratio_db(want: torch.Tensor, have: torch.Tensor) -> float:
    return 10 * math.log10(float((want**2).sum() / ((want - have) ** 2).sum()))


def float64_sqnr(evaluator: Evaluator, layer: Layer, network: torch.nn.Module, rows: int) -> float:
    """The INT8 signal-to-noise ratio of a layer, its input computed by torch, from the first search rows."""
    weight = torch.from_numpy(evaluator.graph.weight(layer.weight).astype(np.float64))
    assert layer.bias is not None
    bias, module = evaluator.graph.weight(layer.bias), network.get_submodule(layer.name)
    calibration = np.concatenate([batch["image"] for batch in evaluator.data.calibration])
    search = np.concatenate([batch["image"] for batch in evaluator.data.split("search").batches])[:rows]
    x = inputs_of(network, layer.name, search)
    rounded = to_int8(layer, x, weight, inputs_of(network, layer.name, calibration))
    return ratio_db(*(run_in_float64(layer, module, *pair, bias) for pair in ((x, weight), rounded)))


@pytest.mark.parametrize("runtime", NAMES)
def test_sqnr_is_that_of_the_layer_alone(runtime: str) -> None:
    evaluator = export_helpers.evaluator(runtime)
    found = {row.layer: row.sqnr_db for row in analyze(evaluator, [INT8], MINMAX).rows}
    for layer in evaluator.graph.layers:
        assert found[layer.name] == pytest.approx(float64_sqnr(evaluator, layer, TinyNetwork(), ROWS), abs=0.5)


def test_no_error_of_other_layers_enters_the_sqnr() -> None:
    """The digits: residual additions, whose inputs and outputs are quantized too where a whole network is INT8."""
    evaluator = digits()
    sensitivity = analyze(evaluator, [INT8], MINMAX, rows=50)
    found = {row.layer: row.sqnr_db for row in sensitivity.rows}
    assert found.keys() == set(evaluator.graph.layer_names)
    for layer in evaluator.graph.layers:
        wanted = float64_sqnr(evaluator, layer, Digits().model(), rows=100)
        assert found[layer.name] == pytest.approx(wanted, abs=0.5), layer.name


def test_sqnr_of_bf16_is_that_of_rounded_inputs_weights_and_outputs() -> None:
    evaluator = export_helpers.evaluator()
    reason = evaluator.runtime.refusal(BF16, "Conv")
    if reason:
        pytest.skip(reason)
    found = {row.layer: row.sqnr_db for row in analyze(evaluator, [BF16]).rows}
    network = TinyNetwork()
    (search,) = evaluator.data.split("search").batches
    for layer in evaluator.graph.layers:
        module, weight = network.get_submodule(layer.name), evaluator.graph.weight(layer.weight)
        assert layer.bias is not None
        bias = evaluator.graph.weight(layer.bias)
        exact = inputs_of(network, layer.name, search["image"]), torch.from_numpy(weight.astype(np.float64))
        rounded = [value.bfloat16().double() for value in exact]
        want = run_in_float64(layer, module, *exact, bias)
        have = run_in_float64(layer, module, rounded[0], rounded[1], bias).bfloat16().double()
        assert found[layer.name] == pytest.approx(ratio_db(want, have), abs=1.0), layer.name


class WildWeights(Tiny):
    """`Tiny`, whose second layer has a huge weight on a channel that is always zero: 8 bits are lost on it."""

    def model(self) -> torch.nn.Module:
        network = TinyNetwork().eval()
        with torch.no_grad():
            network.first.weight[0] = 0
            network.first.bias[0] = -1
            network.second.weight[:, 0] = 100
        return network


class WildActivations(Tiny):
    """`Tiny`, calibrated on images with one pixel that search and holdout do not have."""

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            image = inputs["image"].copy()
            image[:, 0, 0, 0] = 10_000
            yield {"image": image}


@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(("task", "weak"), [(WildWeights, "second"), (WildActivations, "first")])
def test_a_planted_weak_layer_ranks_first(task: Callable[[], Tiny], weak: str, runtime: str) -> None:
    found = analyze(Evaluator(task(), get_runtime(runtime)), [INT8])
    assert found.ranking(INT8)[0] == weak
    errors = found.errors(INT8)
    assert errors[weak] > 100 * max(error for layer, error in errors.items() if layer != weak)
    ratios = {row.layer: row.sqnr_db for row in found.rows}
    assert ratios[weak] < 15 < min(ratio for layer, ratio in ratios.items() if layer != weak)


def test_ranks_follow_the_errors_within_a_scheme() -> None:
    found = analyze(export_helpers.evaluator(), [INT8, FP16])
    for scheme in (INT8, FP16):
        errors, ranking = found.errors(scheme), found.ranking(scheme)
        assert sorted(ranking) == sorted(errors) == ["classifier", "first", "second"]
        assert [errors[layer] for layer in ranking] == sorted(errors.values(), reverse=True)
    assert {row.rank for row in found.rows if row.scheme == "int8"} == {1, 2, 3}


def test_a_row_is_what_the_evaluator_says_of_the_layer_alone() -> None:
    evaluator = export_helpers.evaluator()
    for row in analyze(evaluator, [INT8]).rows:
        config = single(evaluator, evaluator.graph.layer(row.layer), INT8)
        assert config.counts() == {"fp32": 2, "int8": 1}
        evaluation = evaluator.evaluate(evaluator.prepare(config))
        assert (row.output_mse, row.kl, row.drop) == (evaluation.output_mse, evaluation.kl, evaluation.drop)
        layer = evaluator.graph.layer(row.layer)
        assert (row.op, row.parameters, row.macs) == (layer.op, layer.parameters, layer.macs)


def test_fp32_and_qat_are_left_out() -> None:
    found = analyze(export_helpers.evaluator(), [FP32, INT8, QAT])
    assert {row.scheme for row in found.rows} == {"int8"}
    assert analyze(export_helpers.evaluator(), [FP32, QAT]).rows == ()


def test_what_the_runtime_cannot_run_is_left_out() -> None:
    found = analyze(export_helpers.evaluator("onnxruntime"), [BF16, INT8])
    assert {row.scheme for row in found.rows} == {"int8"}
    assert found.ranking(BF16) == []


def test_progress_is_told_of_every_layer() -> None:
    told: list[tuple[int, int, str]] = []
    analyze(export_helpers.evaluator(), [INT8], progress=lambda *step: told.append(step))
    assert told == [(0, 3, "first int8"), (1, 3, "second int8"), (2, 3, "classifier int8")]


@pytest.mark.parametrize(("rows", "taken"), [(1, 50), (50, 50), (51, 100), (447, 447), (10_000, 447), (None, 447)])
def test_rows_are_taken_in_whole_batches(rows: int | None, taken: int) -> None:
    split = first_rows(digits().data, rows)
    whole = digits().data.split("search")
    assert split.rows == len(split.targets) == taken
    np.testing.assert_array_equal(split.targets, whole.targets[:taken])
    np.testing.assert_array_equal(split.batches[-1]["image"], whole.batches[len(split.batches) - 1]["image"])


def test_evaluated_rows_are_counted() -> None:
    assert analyze(export_helpers.evaluator(), [INT8]).evaluated_rows == ROWS
    assert analyze(digits(), [INT8], rows=20).evaluated_rows == 50


def test_shadows_leave_the_graph_alone() -> None:
    graph = export_helpers.evaluator().graph
    before = serialize(graph.model)
    shadows = shadow_graph(graph)
    assert serialize(graph.model) == before
    assert shadows.layer_names == [name + SUFFIX for name in graph.layer_names]
    outputs = {str(value.name) for value in shadows.model.graph.outputs}
    assert outputs == {name(layer) for layer in graph.layer_names for name in (noise_name, signal_name)}


def row(scheme: str, sqnr_db: float, output_mse: float, kl: float | None, drop: float) -> SensitivityRow:
    return SensitivityRow("layer", "Conv", scheme, 10, 100, sqnr_db, output_mse, kl, drop)


INT8_ROWS = (
    row("int8", 40.0, 1e-3, 0.2, 0.010),
    row("int8", 35.0, 2e-3, 0.1, 0.010),
    row("int8", 30.0, 5e-4, 0.4, 0.030),
    row("int8", 20.0, 4e-3, 0.3, 0.020),
)
BF16_ROWS = (
    row("bf16", 60.0, 1e-5, 0.02, 0.001),
    row("bf16", 50.0, 2e-5, 0.01, 0.002),
    row("bf16", 55.0, 3e-5, 0.03, 0.003),
)


def scipys_tau(rows: tuple[SensitivityRow, ...], measure: Callable[[SensitivityRow], float]) -> float:
    return float(stats.kendalltau([measure(row) for row in rows], [row.drop for row in rows]).statistic)


@pytest.mark.parametrize(
    ("name", "measure"),
    [
        ("sqnr_db", lambda row: -row.sqnr_db),
        ("output_mse", lambda row: row.output_mse),
        ("kl", lambda row: row.kl),
    ],
)
def test_kendall_is_scipys_averaged_over_schemes(name: str, measure: Callable[[SensitivityRow], float]) -> None:
    found = Sensitivity((*INT8_ROWS, *BF16_ROWS), 100).kendall()
    wanted = [scipys_tau(rows, measure) for rows in (INT8_ROWS, BF16_ROWS)]
    assert found[name] == pytest.approx(np.mean(wanted))
    assert wanted[0] != wanted[1]


def test_nothing_can_be_said_where_the_drops_are_equal() -> None:
    equal = tuple(row("int8", 30.0 + i, 1e-3 * i, 0.1 * i, 0.0) for i in range(4))
    assert all(math.isnan(tau) for tau in Sensitivity(equal, 100).kendall().values())
    only_bf16 = Sensitivity((*equal, *BF16_ROWS), 100).kendall()
    assert only_bf16["output_mse"] == pytest.approx(scipys_tau(BF16_ROWS, lambda row: row.output_mse))


def test_a_measure_that_there_is_not_has_no_tau() -> None:
    found = Sensitivity(tuple(row("int8", 30.0 + i, 1e-3 * i, None, 0.01 * i) for i in range(4)), 100).kendall()
    assert math.isnan(found["kl"])
    assert found["output_mse"] == 1
    assert found["sqnr_db"] == -1


def test_layers_are_ranked_by_kl_where_there_is_one() -> None:
    assert row("int8", 30.0, 0.5, 0.1, 0.0).error == 0.1
    assert row("int8", 30.0, 0.5, None, 0.0).error == 0.5
