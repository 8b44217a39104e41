"""What the tests of the evaluator share: schemes, and configurations of one alone."""

from __future__ import annotations

import pytest

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision, uniform
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime
from mixq.task import Array, Outputs, Task

FP32, FP16, BF16, INT8 = (LayerScheme(precision=precision) for precision in Precision)


def of(task: Task, runtime: str = "openvino") -> Evaluator:
    return Evaluator(task, get_runtime(runtime), latency_budget_s=0.0)


def all_in(evaluator: Evaluator, scheme: LayerScheme) -> MixedPrecisionConfig:
    """Every layer in `scheme`; skipped where the runtime cannot run it on this machine."""
    reason = evaluator.runtime.refusal(scheme, evaluator.graph.layers[0])
    if reason:
        pytest.skip(reason)
    return uniform(evaluator.fingerprint, evaluator.graph.layer_names, scheme)


def only(outputs: Outputs) -> Array:
    (found,) = outputs.values()
    return found
