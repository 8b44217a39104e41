"""What a trial is worth: the objectives' values, how far it is beyond the constraints, which trial is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mixq.evaluation import Evaluation, Glimpse
from mixq.searcher.space import Constraints, Objective
from mixq.searcher.trial import Trial

TOLERANCE = 1e-9  # 0.72 − 0.715 is not quite 0.005
# Relative difference below which accuracy decides; a size is exact.
EQUAL = {"latency": 0.03, "size": 0.0, "train_seconds": 0.1}


def violations(found: Evaluation | Glimpse, constraints: Constraints) -> dict[str, float]:
    """How far each stated limit is exceeded, ≤ 0 where it is met; without those that nothing is known of yet."""
    beyond = {}
    if constraints.max_drop is not None and found.drop is not None:
        bound = found.drop_bound if isinstance(found, Evaluation) else None
        beyond["drop"] = (found.drop if bound is None else bound) - constraints.max_drop - TOLERANCE
    if constraints.max_latency_ms is not None:
        beyond["latency_ms"] = found.latency_ms.median - constraints.max_latency_ms
    if constraints.max_size_mb is not None:
        beyond["size_mb"] = found.size_bytes / 1e6 - constraints.max_size_mb
    if constraints.max_train_seconds is not None and found.train_s is not None:
        beyond["train_s"] = found.train_s - constraints.max_train_seconds
    return beyond


def objective_value(found: Evaluation | Glimpse, objective: Objective) -> float:
    """Relative to FP32 on this machine, so that its drift over hours cancels; training in seconds. Less is better."""
    if objective == "train_seconds":
        return found.train_s or 0.0
    return 1 / found.compression if objective == "size" else 1 / found.speedup.median


def best_of(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The feasible trial that is surely best in the first objective; None where none is feasible.

    Compared is the bad end of each interval, so that a timing in a noisy moment cannot win. Among those within EQUAL of
    the very best, the one closest to FP32: what is closer holds better on data that the search has not seen.
    """
    feasible = [(trial, trial.evaluation) for trial in trials if trial.feasible and trial.evaluation]
    if not feasible:
        return None
    limit = (1 + EQUAL[objective]) * min(cautious_value(found, objective) for _, found in feasible)
    equals = [pair for pair in feasible if cautious_value(pair[1], objective) <= limit]
    return min(equals, key=lambda pair: _distance(pair[1]))[0]


def is_contender(found: Evaluation, trials: Sequence[Trial], objective: Objective) -> bool:
    """Whether a feasible evaluation, after these trials, may be that of the best, now or after others."""
    known = [cautious_value(trial.evaluation, objective) for trial in trials if trial.feasible and trial.evaluation]
    return cautious_value(found, objective) <= (1 + EQUAL[objective]) * min(known, default=math.inf)


def cautious_value(evaluation: Evaluation, objective: Objective) -> float:
    """`objective_value` at the bad end of its 95 % interval; a size has none."""
    return 1 / evaluation.speedup.low if objective == "latency" else objective_value(evaluation, objective)


def hopeful_value(found: Evaluation | Glimpse, objective: Objective) -> float:
    """The same at the good end."""
    return 1 / found.speedup.high if objective == "latency" else objective_value(found, objective)


def _distance(evaluation: Evaluation) -> float:
    return evaluation.output_mse if evaluation.kl is None else evaluation.kl
