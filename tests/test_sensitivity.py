"""Sensitivity: shadows against float64 convolutions, planted weak layers, and Kendall's τ against scipy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.digits.task import Digits
from mixq.config import LayerScheme, Precision, RecipeStep, Stage
from mixq.dataset import TaskData
from mixq.evaluator import Evaluator
from mixq.graph import Layer, serialize
from mixq.runtimes import NAMES, get_runtime
from mixq.sensitivity import SHADOW_ROWS, Sensitivity, SensitivityRow, analyze, first_rows, single
from mixq.shadow import SUFFIX, noise_name, shadow_graph, signal_name
from mixq.task import Inputs
from tests import tiny
from tests.digits_helpers import digits
from tests.tiny import ROWS, Tiny, TinyNetwork

FP32, FP16, BF16, INT8 = (LayerScheme(precision=precision) for precision in Precision)
QAT = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
# With it, every range is the smallest and largest value seen: no choice of ours enters the oracle.
MINMAX = (RecipeStep(name="calibrate", params={"activations": "minmax", "weights": "minmax"}),)


@cache
def analyzed(runtime: str = "openvino") -> Sensitivity:
    """Of the digits, on their first batch."""
    return analyze(digits(runtime), [INT8], MINMAX, rows=1)


def inputs_of(network: torch.nn.Module, layers: Sequence[Layer], batches: Sequence[Inputs]) -> dict[str, torch.Tensor]:
    """What the module of each layer reads when the network runs all the batches, in float64."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _module, given: seen.update({name: given[0].double()})

    hooks = [network.get_submodule(layer.name).register_forward_pre_hook(keep(layer.name)) for layer in layers]
    with torch.inference_mode():
        network(torch.from_numpy(np.concatenate([batch["image"] for batch in batches])))
    for hook in hooks:
        hook.remove()
    return seen


def run_in_float64(module: torch.nn.Module, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The module with another weight and bias."""
    values = {"weight": w} if module.bias is None else {"weight": w, "bias": b}
    found: torch.Tensor = torch.func.functional_call(module, values, x)
    return found if module.bias is not None else found + b.reshape(-1, 1, 1)


def to_int8(
    x: torch.Tensor, w: torch.Tensor, seen: torch.Tensor, least: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and weight rounded as the standard says: u8 over the range `seen`, s8 for each output channel.

    least: what the channels' largest weights count for, at least.
    """
    low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
    scale = (high - low) / 255
    zero_point = round(-low / scale)
    x = torch.clamp(torch.round(x / scale) + zero_point, 0, 255).sub(zero_point).mul(scale)
    scales = torch.maximum(w.flatten(1).abs().amax(1), least).div(127).reshape(-1, *[1] * (w.ndim - 1))
    return x, torch.round(w / scales) * scales


def sums_of_two(evaluator: Evaluator, w: torch.Tensor) -> torch.Tensor:
    """The largest of two weights that this CPU adds at once, a channel: input channels 0 and 1, 2 and 3, …"""
    if not evaluator.runtime.placement.sums_saturate:
        return torch.zeros(len(w), dtype=w.dtype)
    rows = w.movedim(1, -1).flatten(1)
    sums = (rows[:, 1:] + rows[:, :-1]).abs()
    return (sums if w.shape[1] % 2 else sums[:, ::2]).amax(1)


def weights_of(evaluator: Evaluator, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias in float64; those of a batch norm are in them."""
    assert layer.bias is not None
    weight, bias = (evaluator.graph.weight(name).astype(np.float64) for name in (layer.weight, layer.bias))
    return torch.from_numpy(weight), torch.from_numpy(bias)


def ratio_db(want: torch.Tensor, have: torch.Tensor) -> float:
    return 10 * math.log10(float((want**2).sum() / ((want - have) ** 2).sum()))


def float64_sqnr(evaluator: Evaluator, network: torch.nn.Module) -> dict[str, float]:
    """The INT8 signal-to-noise ratio of every layer on the first search rows, its input computed by torch."""
    layers = evaluator.graph.layers
    ranges = inputs_of(network, layers, evaluator.data.calibration)
    search = inputs_of(network, layers, first_rows(evaluator.data, SHADOW_ROWS).batches)
    found = {}
    for layer in layers:
        (weight, bias), module = weights_of(evaluator, layer), network.get_submodule(layer.name)
        exact = search[layer.name], weight
        pairs = exact, to_int8(*exact, ranges[layer.name], sums_of_two(evaluator, weight))
        found[layer.name] = ratio_db(*(run_in_float64(module, *pair, bias) for pair in pairs))
    return found


@pytest.mark.parametrize("runtime", NAMES)
def test_sqnr_is_that_of_the_layer_alone(runtime: str) -> None:
    evaluator = tiny.evaluator(runtime)
    found = {row.layer: row.sqnr_db for row in analyze(evaluator, [INT8], MINMAX).rows}
    assert found == pytest.approx(float64_sqnr(evaluator, TinyNetwork()), abs=0.5)


@pytest.mark.slow
def test_no_error_of_other_layers_enters_the_sqnr() -> None:
    """The digits: residual additions, whose inputs and outputs are quantized too where a whole network is INT8."""
    evaluator = digits()
    found = {row.layer: row.sqnr_db for row in analyzed().rows}
    assert found == pytest.approx(float64_sqnr(evaluator, Digits().model()), abs=0.5)


def test_sqnr_of_bf16_is_that_of_rounded_inputs_weights_and_outputs() -> None:
    evaluator = tiny.evaluator()
    reason = evaluator.runtime.float_refusal(Precision.BF16)
    if reason:
        pytest.skip(reason)
    found = {row.layer: row.sqnr_db for row in analyze(evaluator, [BF16]).rows}
    network, layers = TinyNetwork(), evaluator.graph.layers
    search = inputs_of(network, layers, evaluator.data.split("search").batches)
    wanted = {}
    for layer in layers:
        module = network.get_submodule(layer.name)
        exact = search[layer.name], *weights_of(evaluator, layer)
        x, weight, bias = (value.bfloat16().double() for value in exact)
        have = run_in_float64(module, x, weight, bias).bfloat16().double()
        wanted[layer.name] = ratio_db(run_in_float64(module, *exact), have)
    assert found == pytest.approx(wanted, abs=1.0)


class WildWeights(Tiny):
    """`Tiny`, whose second layer has a huge weight on a channel that is always zero: 8 bits are lost on it."""

    def model(self) -> torch.nn.Module:
        network = TinyNetwork().eval()
        with torch.no_grad():
            network.first.weight[0] = 0
            network.first.get_parameter("bias")[0] = -1
            network.second.weight[:, 0] = 100
        return network


class WildActivations(Tiny):
    """`Tiny`, calibrated on images with one wild pixel in a channel that the network does not look at."""

    def model(self) -> torch.nn.Module:
        network = TinyNetwork().eval()
        with torch.no_grad():
            network.first.weight[:, 2] = 0
        return network

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            image = inputs["image"].copy()
            image[:, 2, 0, 0] = 10_000
            yield {"image": image}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
@pytest.mark.parametrize(("task", "weak"), [(WildWeights, "second"), (WildActivations, "first")])
def test_a_planted_weak_layer_ranks_first(task: Callable[[], Tiny], weak: str, runtime: str) -> None:
    found = analyze(Evaluator(task(), get_runtime(runtime)), [INT8])
    assert found.ranking(INT8)[0] == weak
    errors = found.errors(INT8)
    assert errors[weak] > 100 * max(error for layer, error in errors.items() if layer != weak)
    ratios = {row.layer: row.sqnr_db for row in found.rows}
    assert ratios[weak] < 15 < min(ratio for layer, ratio in ratios.items() if layer != weak)


@pytest.mark.slow
def test_ranks_follow_the_errors_within_a_scheme() -> None:
    found = analyze(tiny.evaluator(), [INT8, FP16])
    for scheme in (INT8, FP16):
        errors, ranking = found.errors(scheme), found.ranking(scheme)
        assert sorted(ranking) == sorted(errors) == ["classifier", "first", "second"]
        assert [errors[layer] for layer in ranking] == sorted(errors.values(), reverse=True)
    assert {row.rank for row in found.rows if row.scheme == "int8"} == {1, 2, 3}


def test_a_row_is_what_the_evaluator_says_of_the_layer_alone() -> None:
    evaluator = tiny.evaluator()
    for row in analyze(evaluator, [INT8]).rows:
        config = single(evaluator, evaluator.graph.layer(row.layer), INT8)
        assert config.counts() == {"fp32": 2, "int8": 1}
        evaluation = evaluator.evaluate(evaluator.prepare(config))
        assert (row.output_mse, row.kl, row.drop) == (evaluation.output_mse, evaluation.kl, evaluation.drop)
        layer = evaluator.graph.layer(row.layer)
        assert (row.op, row.parameters, row.macs) == (layer.op, layer.parameters, layer.macs)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_running_the_changed_part_of_a_network_is_running_all_of_it(runtime: str) -> None:
    """The digits, which branch and join."""
    evaluator = digits(runtime)
    split = first_rows(evaluator.data, 1)
    (want,) = (value[: split.rows] for value in evaluator.reference_outputs("search").values())
    for row in analyzed(runtime).rows:
        config = single(evaluator, evaluator.graph.layer(row.layer), INT8, MINMAX)
        (have,) = evaluator.outputs(evaluator.prepare(config), split).values()
        assert row.output_mse == pytest.approx(float(((have - want) ** 2).mean() / (want**2).mean()), rel=0.01)


def test_fp32_and_qat_are_left_out() -> None:
    found = analyze(tiny.evaluator(), [FP32, INT8, QAT])
    assert {row.scheme for row in found.rows} == {"int8"}
    assert analyze(tiny.evaluator(), [FP32, QAT]).rows == ()


def test_what_the_runtime_cannot_run_is_left_out() -> None:
    found = analyze(tiny.evaluator("onnxruntime"), [BF16, INT8])
    assert {row.scheme for row in found.rows} == {"int8"}
    assert found.ranking(BF16) == []


def test_progress_is_told_of_every_layer() -> None:
    told: list[tuple[int, int, str]] = []
    analyze(tiny.evaluator(), [INT8], progress=lambda *step: told.append(step))
    assert told == [(0, 3, "first int8"), (1, 3, "second int8"), (2, 3, "classifier int8")]


@pytest.mark.parametrize(
    ("rows", "batches"), [(1, 1), (25, 1), (26, 2), (447, 18), (446, 18), (10_000, 18), (None, 18)]
)
def test_rows_are_taken_in_whole_batches(rows: int | None, batches: int) -> None:
    data = TaskData(Digits(), batch_rows=25)
    whole, split = data.split("search"), first_rows(data, rows)
    assert split.batches == whole.batches[:batches]
    assert split.rows == len(split.targets) == min(25 * batches, 447)
    np.testing.assert_array_equal(split.targets, whole.targets[: split.rows])


def test_evaluated_rows_are_counted() -> None:
    assert analyze(tiny.evaluator(), [INT8]).evaluated_rows == ROWS
    assert analyzed().evaluated_rows == digits().data.batch_rows


def test_shadows_leave_the_graph_alone() -> None:
    graph = tiny.evaluator().graph
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
