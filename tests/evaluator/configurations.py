"""What the tests of the evaluator share: schemes, and configurations of one alone."""

from __future__ import annotations

import pytest

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Array, Outputs, Task

FP32, FP16, BF16, INT8 = (LayerScheme(precision=precision) for precision in Precision)


def of(task: Task, runtime: str = "openvino") -> Evaluator:
    return Evaluator(task, get_runtime(runtime), latency_budget_s=0.0)


def all_in(evaluator: Evaluator, scheme: LayerScheme) -> MixedPrecisionConfig:
    """Every layer in `scheme` that can have it, embeddings as codes where it is INT8; skipped where none can here."""
    reasons = {layer.name: evaluator.runtime.refusal(scheme, layer) for layer in evaluator.graph.layers}
    if all(reasons.values()):
        pytest.skip(str(next(iter(reasons.values()))))
    schemes = {name: FP32 if reason else scheme for name, reason in reasons.items()}
    if scheme.precision is Precision.INT8:
        codes = LayerScheme.parse("int8-weight_only")
        schemes |= {layer.name: codes for layer in evaluator.graph.layers if layer.looks_up}
    return MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes)


def only(outputs: Outputs) -> Array:
    (found,) = outputs.values()
    return found
