"""Evaluator: its numbers against plain torch and plain ONNX Runtime, on the digits and on small networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch

from experiments.digits.task import Digits
from mixq import machine
from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, Stage, Training, uniform
from mixq.corruptions import Corruption
from mixq.dataset import row_count
from mixq.errors import InputError
from mixq.evaluator import Candidate, Evaluator, run_batches
from mixq.runtimes import NAMES, Executable, Kernel, get_runtime
from mixq.task import Array, Inputs, Outputs, Task
from tests import export_helpers
from tests.digits_helpers import digits
from tests.export_helpers import Tiny, TinyNetwork

FP32, FP16, BF16, INT8 = (LayerScheme(precision=precision) for precision in Precision)


def of(task: Task, runtime: str = "openvino") -> Evaluator:
    return Evaluator(task, get_runtime(runtime), latency_budget_s=0.0)


def all_in(evaluator: Evaluator, scheme: LayerScheme) -> MixedPrecisionConfig:
    """Every layer in `scheme`; skipped where the runtime cannot run it on this machine."""
    reason = evaluator.runtime.refusal(scheme, evaluator.graph.layers[0].op)
    if reason:
        pytest.skip(reason)
    return uniform(evaluator.fingerprint, evaluator.graph.layer_names, scheme)


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


def only(outputs: Outputs) -> Array:
    (found,) = outputs.values()
    return found


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
    assert (evaluation.kl, evaluation.agreement, evaluation.silent) == (0, 1, ())
    assert {kernel.executed for kernel in evaluation.kernels} == {"fp32"}


@pytest.mark.parametrize("runtime", NAMES)
def test_int8_runs_as_int8_and_stays_close(runtime: str) -> None:
    evaluator = digits(runtime)
    evaluation = evaluator.evaluate(prepared(runtime, INT8))
    assert evaluation.silent == ()
    assert [kernel.layer for kernel in evaluation.kernels] == evaluator.graph.layer_names
    assert {kernel.executed for kernel in evaluation.kernels} == {"int8"}
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
    assert (row["silent_layers"], row["seconds_train"]) == (0, 0.0)


@pytest.mark.parametrize("runtime", NAMES)
def test_a_layer_that_silently_ran_float_is_found(runtime: str) -> None:
    evaluator = digits(runtime)
    forged = replace(evaluator.reference, config=all_in(evaluator, INT8))
    evaluation = evaluator.evaluate(forged)
    assert list(evaluation.silent) == evaluator.graph.layer_names
    assert evaluation.row()["silent_layers"] == len(evaluator.graph.layers)


def test_silent_layers_are_those_that_ran_as_something_else_than_expected() -> None:
    evaluator = export_helpers.evaluator()
    schemes = {"first": INT8, "second": FP32, "classifier": INT8}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes)
    executed = {"first": "fp32", "second": "fp32", "classifier": "int8"}
    kernels = [Kernel(layer, precision, "kernel") for layer, precision in executed.items()]
    assert evaluator.silent_layers(config, kernels) == ["first"]


@pytest.mark.parametrize("scheme", [BF16, FP16], ids=str)
def test_float_types_run_as_expected(scheme: LayerScheme) -> None:
    evaluator = digits()
    evaluation = evaluator.evaluate(prepared("openvino", scheme))
    expected = evaluator.runtime.expected(scheme.precision)
    assert {kernel.layer: kernel.executed for kernel in evaluation.kernels} == dict.fromkeys(
        evaluator.graph.layer_names, expected
    )
    assert evaluation.silent == ()
    assert evaluation.compression > 1.9
    assert 0 < evaluation.output_mse < 1e-3
    assert abs(evaluation.drop) < 0.01


@pytest.mark.parametrize("rest", [Precision.FP32, Precision.BF16])
def test_types_can_be_mixed(rest: Precision) -> None:
    evaluator = export_helpers.evaluator()
    reason = evaluator.runtime.refusal(BF16, "Conv")
    if reason:
        pytest.skip(reason)
    asked = {"first": Precision.INT8, "second": Precision.BF16, "classifier": Precision.FP32}
    schemes = {name: LayerScheme(precision=precision) for name, precision in asked.items()}
    config = MixedPrecisionConfig.model_validate({"model": evaluator.fingerprint, "schemes": schemes, "rest": rest})
    evaluation = evaluator.evaluate(evaluator.prepare(config))
    assert {kernel.layer: kernel.executed for kernel in evaluation.kernels} == asked
    assert evaluation.silent == ()
    assert 0 < evaluation.output_mse < 1e-3


@pytest.mark.parametrize("runtime", NAMES)
def test_a_configuration_of_fp32_alone_is_the_captured_model(runtime: str) -> None:
    evaluator = export_helpers.evaluator(runtime)
    candidate = evaluator.prepare(all_in(evaluator, FP32))
    assert candidate.model == evaluator.reference.model
    assert candidate.config == evaluator.reference.config


def test_latency_is_measured_on_one_row_beside_fp32() -> None:
    evaluator = export_helpers.evaluator()
    evaluation = evaluator.evaluate(export_helpers.measured(export_helpers.MIXED)[0])
    assert row_count(evaluator.data.example) == 1
    assert evaluation.threads == 1
    assert evaluation.latency_ms.low <= evaluation.latency_ms.median <= evaluation.latency_ms.high
    assert evaluation.speedup.low <= evaluation.speedup.median <= evaluation.speedup.high
    assert evaluation.reference_ms > 0


@pytest.mark.parametrize("threads", [0, -1, machine.cores() + 1])
def test_threads_that_the_machine_has_not_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match=rf"threads must be from 1 to {machine.cores()} .* got {threads}"):
        Evaluator(Tiny(), get_runtime("openvino"), threads=threads)


def test_a_configuration_of_another_model_is_refused() -> None:
    evaluator = export_helpers.evaluator()
    config = uniform("0" * 16, evaluator.graph.layer_names, INT8)
    with pytest.raises(InputError, match="is for the model 0000000000000000, this one is"):
        evaluator.prepare(config)


def test_a_scheme_that_the_runtime_cannot_run_is_refused_by_name() -> None:
    evaluator = export_helpers.evaluator("onnxruntime")
    schemes = {"first": FP32, "second": BF16, "classifier": FP32}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes)
    with pytest.raises(InputError, match=r"onnxruntime cannot run layer 'second' as bf16: .* no BF16 kernels"):
        evaluator.prepare(config)


def test_a_rest_that_the_runtime_cannot_run_is_refused() -> None:
    evaluator = export_helpers.evaluator("onnxruntime")
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, FP32, rest=Precision.BF16)
    with pytest.raises(InputError, match="onnxruntime cannot run rest: bf16"):
        evaluator.prepare(config)


@pytest.mark.parametrize("runtime", NAMES)
def test_activations_that_are_not_lowered_are_refused(runtime: str) -> None:
    evaluator = export_helpers.evaluator(runtime)
    dynamic = LayerScheme(precision=Precision.INT8, activation=Activation.DYNAMIC)
    with pytest.raises(InputError, match="cannot run layer 'classifier' as int8-dynamic"):
        evaluator.prepare(uniform(evaluator.fingerprint, evaluator.graph.layer_names, dynamic))


def test_training_is_part_of_preparing() -> None:
    evaluator = export_helpers.evaluator()
    qat = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
    training = Training(steps=3, learning_rate=1e-4)
    notes: list[str] = []
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, qat, training=training)
    candidate = evaluator.prepare(config, notes.append)
    evaluation = evaluator.evaluate(candidate)
    assert len(candidate.losses) == len(notes) == 3
    assert evaluation.seconds["train"] == candidate.train_s > 0
    assert evaluation.silent == ()


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


def test_robustness_is_the_metric_on_corrupted_images() -> None:
    evaluator = digits()
    images, labels = rows_of("search")
    found = evaluator.robustness(evaluator.reference)
    assert found.keys() == {"gaussian_noise", "blur", "contrast"}
    mean = images.mean((1, 2, 3), keepdims=True)
    assert found["contrast"] == top1(torch_logits(mean + np.float32(0.5) * (images - mean)), labels)


class Words(Task):
    """Two inputs of other types and ranks (token ids, and a weight each), a regression; nothing in it is an image."""

    primary = "fit"

    def model(self) -> torch.nn.Module:
        return WordsNetwork().eval()

    def calibration(self) -> Iterator[Inputs]:
        yield word_rows(40, seed=0)

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for seed, rows in enumerate((7, 60, 6), start=1 if split == "search" else 4):
            yield word_rows(rows, seed), np.ones((rows, 2), np.float32)

    def metrics(self, outputs: Outputs, targets: Array) -> Mapping[str, float]:
        return {"fit": -float(np.mean((only(outputs) - targets) ** 2))}

    def corruptions(self) -> Mapping[str, Callable[[Inputs], Inputs]]:
        return {"zeros": lambda inputs: {**inputs, "weights": np.zeros_like(inputs["weights"])}}


class WordsNetwork(torch.nn.Module):
    """A linear layer on each embedding, a weighted bag of them, a linear layer.

    The bag stands between the two because OpenVINO (2026.4) fuses linear layers in a row, a row at a time, to float.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 16)
        self.hidden = torch.nn.Linear(16, 32)
        self.out = torch.nn.Linear(32, 2)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        bag = (torch.relu(self.hidden(self.embedding(tokens))) * weights[:, :, None]).sum(1)
        found: torch.Tensor = self.out(bag)
        return found


def word_rows(rows: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (rows, 6))
    return {"tokens": tokens, "weights": rng.random((rows, 6), np.float32)}


@pytest.mark.parametrize("runtime", NAMES)
def test_several_inputs_of_any_type(runtime: str) -> None:
    evaluator = of(Words(), runtime)
    rows = [word_rows(count, seed) for seed, count in enumerate((7, 60, 6), start=1)]
    inputs = {name: torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in rows[0]}
    with torch.inference_mode():
        wanted = WordsNetwork()(**inputs).numpy()
    found = only(evaluator.outputs(evaluator.reference, evaluator.data.split("search")))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    evaluation = evaluator.evaluate(evaluator.prepare(all_in(evaluator, INT8)))
    assert (evaluation.silent, evaluation.kl, evaluation.agreement, evaluation.ece) == ((), None, None, None)
    assert 0 < evaluation.output_mse < 1e-3
    assert evaluation.drop == pytest.approx(-float(np.mean((wanted - 1) ** 2)) - evaluation.metric, abs=1e-6)


def test_a_task_brings_its_own_corruptions() -> None:
    evaluator = of(Words())
    tokens = np.concatenate([word_rows(count, seed)["tokens"] for seed, count in enumerate((7, 60, 6), start=1)])
    with torch.inference_mode():
        blank = WordsNetwork()(torch.from_numpy(tokens), torch.zeros(tokens.shape)).numpy()
    found = evaluator.robustness(evaluator.reference)
    assert found == {"zeros": pytest.approx(-float(np.mean((blank - 1) ** 2)), rel=1e-5)}


class Probabilities(Tiny):
    """`Tiny`, with a softmax at the end of its network."""

    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(Stretched(), torch.nn.Softmax(1)).eval()

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            yield {"input": inputs["image"]}

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        for inputs, targets in super().batches(split):
            yield {"input": inputs["image"]}, targets


class Stretched(TinyNetwork):
    """Logits far enough apart for a softmax that is nearly sure."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 20 * super().forward(image)


def test_probabilities_in_bf16_are_compared_as_probabilities() -> None:
    """A BF16 softmax sums to 1 but for its rounding."""
    evaluator = of(Probabilities())
    names = evaluator.graph.layer_names
    reason = evaluator.runtime.refusal(BF16, "Conv")
    if reason:
        pytest.skip(reason)
    schemes = {**dict.fromkeys(names, INT8), names[0]: FP32}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes, rest=Precision.BF16)
    evaluation, exact = evaluator.evaluate(evaluator.prepare(config)), evaluator.evaluate(evaluator.reference)
    assert evaluation.kl is not None
    assert evaluation.kl < 1e-3
    assert exact.ece is not None
    assert evaluation.ece == pytest.approx(exact.ece, abs=0.01)


class Recorded(Executable):
    """Doubles its input, and notes the shapes that it is given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Inputs) -> Outputs:
        self.shapes.append(inputs["x"].shape)
        return {"y": 2 * inputs["x"], "z": inputs["x"].sum(1)}

    def bind(self, inputs: Inputs) -> Callable[[], None]:
        raise NotImplementedError

    def audit(self, layers: Sequence[object], inputs: Inputs, *, timed: bool = True) -> list[Kernel]:
        raise NotImplementedError


@pytest.mark.parametrize("counts", [[4, 4, 4], [4, 4, 3], [4, 1], [1]])
def test_short_batches_are_filled_up_and_cut_again(counts: list[int]) -> None:
    executable = Recorded()
    data = np.random.default_rng(0).standard_normal((sum(counts), 3))
    ends = np.cumsum(counts)
    batches = [{"x": data[end - count : end]} for end, count in zip(ends, counts, strict=True)]
    found = run_batches(executable, batches, 4)
    assert set(executable.shapes) == {(4, 3)}
    np.testing.assert_array_equal(found["y"], 2 * data)
    np.testing.assert_array_equal(found["z"], data.sum(1))


def test_a_corruption_is_applied_to_every_batch() -> None:
    evaluator = digits()
    split = evaluator.data.split("search")
    seen: list[int] = []

    def blank(inputs: Inputs) -> Inputs:
        seen.append(row_count(inputs))
        return {"image": np.zeros_like(inputs["image"])}

    corrupt: Corruption = blank
    found = only(evaluator.outputs(evaluator.reference, split, corrupt))
    assert sum(seen) == split.rows == len(found)
    assert np.ptp(found, axis=0).max() < 1e-5


class OtherWeights(Tiny):
    """`Tiny` with one weight changed."""

    def model(self) -> torch.nn.Module:
        network = TinyNetwork().eval()
        with torch.no_grad():
            network.first.weight[0, 0, 0, 0] += 1e-3
        return network


class OtherCalibration(Tiny):
    """`Tiny`, calibrated on one row less."""

    def calibration(self) -> Iterator[Inputs]:
        for inputs in super().calibration():
            yield {"image": inputs["image"][1:]}


class OtherMetric(Tiny):
    """`Tiny`, protecting a metric of another name."""

    primary = "accuracy"


class OtherSearchData(Tiny):
    """`Tiny`, judged on other data: configurations for it are configurations for Tiny."""

    def batches(self, split: str) -> Iterator[tuple[Inputs, Array]]:
        return super().batches("holdout")


@pytest.mark.parametrize("task", [OtherWeights, OtherCalibration, OtherMetric])
def test_the_fingerprint_knows_weights_calibration_and_metric(task: type[Task]) -> None:
    assert of(task()).fingerprint != export_helpers.evaluator().fingerprint


@pytest.mark.parametrize("task", [Tiny, OtherSearchData])
def test_the_fingerprint_is_the_same_for_the_same(task: type[Task]) -> None:
    assert of(task()).fingerprint == export_helpers.evaluator().fingerprint
