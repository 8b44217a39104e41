"""What the evaluator prepares, refuses and measures, on the tiny network."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixq import machine
from mixq.config import Activation, LayerScheme, MixedPrecisionConfig, Precision, Stage, Training, uniform
from mixq.dataset import row_count
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.runtimes import NAMES, Kernel, get_runtime
from tests import export_helpers, tiny
from tests.evaluator.configurations import BF16, FP32, INT8, all_in
from tests.tiny import Tiny


def test_silent_layers_are_those_that_ran_as_something_else_than_expected() -> None:
    evaluator = tiny.evaluator()
    schemes = {"first": INT8, "second": FP32, "classifier": INT8}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes)
    executed = {"first": "fp32", "second": "fp32", "classifier": "int8"}
    kernels = [Kernel(layer, precision, "kernel") for layer, precision in executed.items()]
    assert evaluator.silent_layers(config, kernels) == ["first"]


@pytest.mark.parametrize("rest", [Precision.FP32, Precision.BF16])
def test_types_can_be_mixed(rest: Precision) -> None:
    evaluator = tiny.evaluator()
    reason = evaluator.runtime.float_refusal(Precision.BF16)
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
    evaluator = tiny.evaluator(runtime)
    candidate = evaluator.prepare(all_in(evaluator, FP32))
    assert candidate.model == evaluator.reference.model
    assert candidate.config == evaluator.reference.config


def test_latency_is_measured_on_one_row_beside_fp32() -> None:
    evaluator = tiny.evaluator()
    evaluation = evaluator.evaluate(export_helpers.measured(export_helpers.MIXED)[0])
    assert row_count(evaluator.data.example) == 1
    assert evaluation.threads == 1
    assert evaluation.latency_ms.low <= evaluation.latency_ms.median <= evaluation.latency_ms.high
    assert evaluation.speedup.low <= evaluation.speedup.median <= evaluation.speedup.high
    assert evaluation.reference_ms > 0


@pytest.mark.parametrize("runtime", NAMES)
def test_profile_is_the_audit_with_the_kernels_times(runtime: str) -> None:
    candidate, evaluation = export_helpers.measured(export_helpers.MIXED, runtime)
    found = tiny.evaluator(runtime).profile(candidate)
    assert [replace(kernel, time_us=None) for kernel in found] == [
        replace(kernel, time_us=None) for kernel in evaluation.kernels
    ]
    assert all(kernel.time_us is not None and kernel.time_us > 0 for kernel in found)


def test_evaluate_spends_nothing_on_the_kernels_times() -> None:
    """On OpenVINO, where they take a compilation of their own."""
    _, evaluation = export_helpers.measured(export_helpers.MIXED)
    assert [kernel.time_us for kernel in evaluation.kernels] == [None] * 3


@pytest.mark.parametrize("threads", [0, -1, machine.cores() + 1])
def test_threads_that_the_machine_has_not_are_refused(threads: int) -> None:
    with pytest.raises(InputError, match=rf"threads must be from 1 to {machine.cores()} .* got {threads}"):
        Evaluator(Tiny(), get_runtime("openvino"), threads=threads)


def test_a_configuration_of_another_model_is_refused() -> None:
    evaluator = tiny.evaluator()
    config = uniform("0" * 16, evaluator.graph.layer_names, INT8)
    with pytest.raises(InputError, match="is for the model 0000000000000000, this one is"):
        evaluator.prepare(config)


def test_a_scheme_that_the_runtime_cannot_run_is_refused_by_name() -> None:
    evaluator = tiny.evaluator("onnxruntime")
    schemes = {"first": FP32, "second": BF16, "classifier": FP32}
    config = MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes)
    with pytest.raises(InputError, match=r"onnxruntime cannot run layer 'second' as bf16: .* no BF16 kernels"):
        evaluator.prepare(config)


def test_a_rest_that_the_runtime_cannot_run_is_refused() -> None:
    evaluator = tiny.evaluator("onnxruntime")
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, FP32, rest=Precision.BF16)
    with pytest.raises(InputError, match="onnxruntime cannot run rest: bf16"):
        evaluator.prepare(config)


@pytest.mark.parametrize("runtime", NAMES)
def test_activations_that_a_runtime_has_no_kernel_for_are_refused(runtime: str) -> None:
    evaluator = tiny.evaluator(runtime)
    dynamic = LayerScheme(precision=Precision.INT8, activation=Activation.DYNAMIC)
    reasons = "ConvInteger|of a Conv|by 128 values"
    with pytest.raises(InputError, match=rf"cannot run layer '\w+' as int8-dynamic: .*({reasons})"):
        evaluator.prepare(uniform(evaluator.fingerprint, evaluator.graph.layer_names, dynamic))


def test_training_is_part_of_preparing() -> None:
    evaluator = tiny.evaluator()
    qat = LayerScheme(precision=Precision.INT8, stage=Stage.QAT)
    training = Training(steps=3, learning_rate=1e-4)
    notes: list[str] = []
    config = uniform(evaluator.fingerprint, evaluator.graph.layer_names, qat, training=training)
    candidate = evaluator.prepare(config, notes.append)
    evaluation = evaluator.evaluate(candidate)
    assert len(candidate.losses) == len(notes) == 3
    assert evaluation.seconds["train"] >= candidate.train_s > 0
    assert evaluation.train_s == candidate.train_s
    assert evaluation.silent == ()
