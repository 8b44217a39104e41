"""The evaluator of the digits, captured and calibrated once for all tests."""

from __future__ import annotations

from functools import cache

from experiments.digits.task import Digits
from mixq.evaluator import Evaluator
from mixq.runtimes import get_runtime


@cache
def digits(runtime: str = "openvino") -> Evaluator:
    return Evaluator(Digits(), get_runtime(runtime), latency_budget_s=0.0)
