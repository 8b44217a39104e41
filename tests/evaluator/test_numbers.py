"""The evaluator's numbers for the digits against plain torch and plain ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from experiments.digits.task import Digits
from mixq.config import LayerScheme
from mixq.dataset import Split, row_count
from mixq.evaluation import Candidate, DroppedError, Glimpse
from mixq.evaluator import Evaluator
from mixq.race import look_points
from mixq.runtimes import NAMES, Executable, get_runtime
from mixq.task import Array, Inputs, Outputs
from tests.digits_helpers import digits
from tests.evaluator.configurations import BF16, FP16, INT8, all_in, only


@cache
def prepared(runtime: str, scheme: LayerScheme) -> Candidate:
    """The digits, uniform."""
    return digits(runtime).prepare(all_in(digits(runtime), scheme))


def torch_logits(images: Array) -> Array:
    """What the network of the digits gives, in torch."""
    with torch.inference_mode():
        found: Array = Digits().model()(torch.from_numpy(images)).numpy()
    return found


def rows_of(split: str) -> tuple[Array, Array]:
    """All images and labels of a part of the digits."""
    batches = list(Digits().batches(split))
    return np.concatenate([inputs["image"] for inputs, _ in batches]), np.concatenate([labels for _, labels in batches])


def top1(logits: Array, labels: Array) -> float:
    return float((logits.argmax(1) == labels).mean())


@pytest.mark.slow
@pytest.mark.parametrize("runtime", NAMES)
def test_fp32_is_torchs(runtime: str) -> None:
    """447 rows: the last of mixq's batches of 50 is short."""
    evaluator = digits(runtime)
    images, labels = rows_of("search")
    assert len(images) % evaluator.data.batch_rows
    wanted = torch_logits(images)
    found = only(evaluator.outputs(evaluator.reference, evaluator.data.split("search")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    evaluation = evaluator.evaluate(evaluator.reference)
    assert evaluation.metric == evaluation.metrics["top1"] == top1(wanted, labels)
    assert (evaluation.drop, evaluation.output_mse, evaluation.compression) == (0, 0, 1)
    assert (evaluation.kl, evaluation.agreement, evaluation.silent, evaluation.conversions) == (0, 1, (), 0)
    assert {kernel.executed for kernel in evaluation.kernels} == {"fp32"}


@pytest.mark.parametrize("runtime", NAMES)
def test_int8_runs_as_int8_and_stays_close(runtime: str) -> None:
    evaluator = digits(runtime)
    evaluation = evaluator.evaluate(prepared(runtime, INT8))
    assert evaluation.silent == ()
    assert [kernel.layer for kernel in evaluation.kernels] == evaluator.graph.layer_names
    assert {kernel.executed for kernel in evaluation.kernels} == {"int8"}
    assert evaluation.conversions is not None
    assert 1 <= evaluation.conversions <= 4  # at the input and the output, around what has no integer kernel
    assert evaluation.compression > 3
    assert evaluation.agreement is not None
    assert evaluation.agreement > 0.98
    assert abs(evaluation.drop) < 0.01
    assert evaluation.drop == evaluator.reference_metrics["top1"] - evaluation.metric


def test_int8_outputs_are_those_of_the_bytes_in_a_plain_session() -> None:
    """Batches, filling up and options add nothing: the exported file alone gives the same outputs."""
    evaluator, candidate = digits("onnxruntime"), prepared("onnxruntime", INT8)
    images, labels = rows_of("search")
    session = onnxruntime.InferenceSession(candidate.model, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"image": images})
    found = only(evaluator.outputs(candidate, evaluator.data.split("search")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert evaluator.evaluate(candidate).metric == top1(wanted, labels)


def test_both_runtimes_agree_on_one_configuration() -> None:
    left, right = digits("openvino"), digits("onnxruntime")
    assert left.fingerprint == right.fingerprint
    config = all_in(left, INT8)
    found = [evaluator.evaluate(evaluator.prepare(config)).metric for evaluator in (left, right)]
    assert found[0] == pytest.approx(found[1], abs=0.01)


@pytest.mark.parametrize("runtime", NAMES)
def test_a_configuration_gives_the_same_every_time(runtime: str) -> None:
    evaluator = digits(runtime)
    first, second = prepared(runtime, INT8), evaluator.prepare(all_in(evaluator, INT8))
    assert first.model == second.model
    split = evaluator.data.split("search")
    np.testing.assert_array_equal(only(evaluator.outputs(first, split)), only(evaluator.outputs(second, split)))


def test_a_row_is_flat_and_whole() -> None:
    evaluation = digits().evaluate(prepared("openvino", INT8))
    row = evaluation.row()
    assert all(value is None or isinstance(value, float | int | str) for value in row.values())
    assert json.loads(json.dumps(row)) == row
    assert {"config_id", "runtime", "threads", "metric", "drop", "size_bytes", "compression", "kl"} <= row.keys()
    assert (row["latency_ms_median"], row["speedup_low"]) == (evaluation.latency_ms.median, evaluation.speedup.low)
    assert (row["silent_layers"], row["train_s"]) == (0, 0.0)


@pytest.mark.parametrize("runtime", NAMES)
def test_a_layer_that_silently_ran_float_is_found(runtime: str) -> None:
    evaluator = digits(runtime)
    forged = replace(evaluator.reference, config=all_in(evaluator, INT8))
    evaluation = evaluator.evaluate(forged)
    assert list(evaluation.silent) == evaluator.graph.layer_names
    assert evaluation.row()["silent_layers"] == len(evaluator.graph.layers)


@pytest.mark.parametrize("scheme", [BF16, FP16], ids=str)
def test_float_types_run_as_expected(scheme: LayerScheme) -> None:
    evaluator = digits()
    evaluation = evaluator.evaluate(prepared("openvino", scheme))
    config = prepared("openvino", scheme).config
    assert {kernel.layer: kernel.executed for kernel in evaluation.kernels} == {
        layer.name: evaluator.runtime.expected(scheme, layer, config) for layer in evaluator.graph.layers
    }
    assert evaluation.silent == ()
    assert evaluation.compression > 1.9
    assert 0 < evaluation.output_mse < 1e-3
    assert abs(evaluation.drop) < 0.01


@pytest.mark.slow
def test_the_holdout_split_is_judged_by_its_own_rows() -> None:
    evaluator, candidate = digits("onnxruntime"), prepared("onnxruntime", INT8)
    images, labels = rows_of("holdout")
    session = onnxruntime.InferenceSession(candidate.model, providers=["CPUExecutionProvider"])
    after = top1(session.run(None, {"image": images})[0], labels)
    before = top1(torch_logits(images), labels)
    found = evaluator.holdout(candidate)
    assert found["metric"] == after
    assert found["drop"] == before - after
    assert found["rows"] == len(labels)
    interval = found["drop_interval"]
    assert isinstance(interval, list)
    assert interval[0] <= before - after <= interval[1]


@pytest.mark.slow
def test_robustness_is_the_metric_on_corrupted_images() -> None:
    evaluator = digits()
    images, labels = rows_of("search")
    found = evaluator.robustness(evaluator.reference)
    assert found.keys() == {"gaussian_noise", "blur", "contrast"}
    mean = images.mean((1, 2, 3), keepdims=True)
    assert found["contrast"] == top1(torch_logits(mean + np.float32(0.5) * (images - mean)), labels)


def test_a_corruption_is_applied_to_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = digits()
    split = evaluator.data.split("search")
    seen: list[int] = []
    given: list[Outputs] = []

    def blank(inputs: Inputs) -> Inputs:
        seen.append(row_count(inputs))
        return {"image": np.zeros_like(inputs["image"])}

    def noted(outputs: Outputs, split: Split) -> Mapping[str, float]:
        given.append(outputs)
        return {"top1": 0.0}

    monkeypatch.setattr(evaluator.data, "corruptions", lambda: {"blank": blank})
    monkeypatch.setattr(evaluator.data, "metrics", noted)
    evaluator.robustness(evaluator.reference)
    found = only(given[0])
    assert sum(seen) == split.rows == len(found)
    assert np.ptp(found, axis=0).max() < 1e-5


def test_robustness_compiles_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, compiled = digits(), list[bytes]()
    compile_ = evaluator.runtime.compile

    def counted(model: bytes, *rest: Any) -> Executable:
        compiled.append(model)
        return compile_(model, *rest)

    monkeypatch.setattr(evaluator.runtime, "compile", counted)
    assert len(evaluator.robustness(evaluator.reference)) > 1
    assert compiled == [evaluator.reference.model]


@pytest.mark.slow
def test_with_a_confidence_the_drop_has_a_bound() -> None:
    """That of the paired bootstrap, one-sided; FP32's own is 0."""
    known = digits("openvino")
    evaluator = Evaluator(Digits(), get_runtime("openvino"), latency_budget_s=0.0, confidence=0.9)
    found = evaluator.evaluate(prepared("openvino", INT8))
    split = known.data.split("search")
    before = only(known.reference_outputs("search")).argmax(1) == split.targets
    after = only(known.outputs(prepared("openvino", INT8), split)).argmax(1) == split.targets
    differences = before.astype(float) - after
    rng = np.random.default_rng(1)
    drops = [rng.choice(differences, len(differences)).mean() for _ in range(4000)]
    assert found.drop_bound == pytest.approx(np.quantile(drops, 0.9), abs=1.5 / len(differences))
    assert evaluator.evaluate(evaluator.reference).drop_bound == 0
    assert known.evaluate(known.reference).drop_bound is None


@pytest.mark.parametrize("runtime", NAMES)
def test_a_judge_is_asked_after_the_timing_and_on_the_way(runtime: str) -> None:
    evaluator, asked = digits(runtime), list[Glimpse]()

    def judge(seen: Glimpse) -> str | None:
        asked.append(seen)
        return None

    found = evaluator.evaluate(prepared(runtime, INT8), judge)
    whole = evaluator.evaluate(prepared(runtime, INT8))
    assert (found.metric, found.kl, found.output_mse) == (whole.metric, whole.kl, whole.output_mse)
    timed, later = [seen for seen in asked if not seen.rows], [seen for seen in asked if seen.rows]
    assert asked == timed + later
    assert {(seen.drop, seen.size_bytes) for seen in timed} == {(None, found.size_bytes)}
    assert timed[-1].speedup == found.speedup
    batches = len(evaluator.data.split("search").batches)
    assert [seen.rows for seen in later] == [
        evaluator.data.batch_rows * count for count in sorted(look_points(batches))
    ]
    assert all(seen.drop_low is not None and seen.drop_low <= found.drop for seen in later)


def test_a_candidate_that_is_let_go_runs_no_further() -> None:
    evaluator = digits("openvino")
    with pytest.raises(DroppedError, match="too slow") as caught:
        evaluator.evaluate(prepared("openvino", INT8), lambda seen: "too slow")
    assert caught.value.glimpse.drop is None
    assert caught.value.glimpse.seconds.keys() == {"recipe", "compile", "wait for a turn", "latency"}
