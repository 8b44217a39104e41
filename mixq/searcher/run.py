"""The search loop: ask, evaluate on the runtime, tell; a callback sees every finished trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from mixq.errors import MixqError
from mixq.evaluator import Candidate, Evaluation, Evaluator
from mixq.searcher.choices import Choices, Params
from mixq.searcher.samplers import distributions
from mixq.searcher.space import Constraints, Objective, SearchSpace
from mixq.searcher.stop import Stop
from mixq.searcher.study import (
    ELAPSED,
    ORIGIN,
    REASON,
    SECONDS,
    seen_configs,
    store_evaluation,
    store_trial,
    trial_of,
    trials_of,
)
from mixq.searcher.trial import Trial

WARM = "mixq:warm"
TOLERANCE = 1e-9  # 0.72 − 0.715 is not quite 0.005
EQUAL = 0.03  # relative difference in the objective below which accuracy decides
REPEATS = 5  # proposals in a row that were all evaluated before: the space is used up

OnTrial = Callable[[Trial, Candidate | None], None]


@dataclass(frozen=True)
class Budget:
    """trials: of the whole study, those of earlier runs included; began, deadline: times of time.monotonic()."""

    trials: int
    began: float
    deadline: float | None = None

    @property
    def timed_out(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def enqueue(study: optuna.Study, starts: Sequence[tuple[str, Params]]) -> None:
    """Queue the warm start, once in the life of a study."""
    if study.user_attrs.get(WARM):
        return
    for origin, params in starts:
        study.enqueue_trial(dict(params), user_attrs={ORIGIN: origin}, skip_if_exists=True)
    study.set_user_attr(WARM, True)


def run(
    study: optuna.Study,
    evaluator: Evaluator,
    choices: Choices,
    space: SearchSpace,
    budget: Budget,
    stop: Stop,
    on_trial: OnTrial,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Evaluate configurations until the budget is spent, a stop is requested, or the space is used up."""
    earlier = trials_of(study)
    done, repeats = len(earlier), 0
    elapsed_before = max((trial.elapsed_s for trial in earlier), default=0.0)
    while done < budget.trials and not stop.requested and not budget.timed_out and repeats < REPEATS:
        seen = seen_configs(study)
        asked = study.ask(distributions(choices))
        config = choices.config({name: str(value) for name, value in asked.params.items()})
        if config.id in seen:
            study.tell(asked, state=TrialState.PRUNED)
            repeats += 1
            continue
        done, repeats = done + 1, 0
        store_trial(asked, config, asked.user_attrs.get(ORIGIN, space.sampler))
        start, found = time.perf_counter(), None
        try:
            candidate = evaluator.prepare(config, progress)
            found = candidate, evaluator.evaluate(candidate)
        except (MixqError, RuntimeError, MemoryError) as error:  # the next configuration may not have this trouble
            asked.set_user_attr(REASON, f"{type(error).__name__}: {error}")
        asked.set_user_attr(SECONDS, time.perf_counter() - start)
        asked.set_user_attr(ELAPSED, elapsed_before + time.monotonic() - budget.began)
        _tell(study, asked, found[1] if found else None, space)
        on_trial(trial_of(study.get_trials(deepcopy=False)[asked.number]), found[0] if found else None)


def _tell(study: optuna.Study, asked: optuna.Trial, evaluation: Evaluation | None, space: SearchSpace) -> None:
    if evaluation is None:
        study.tell(asked, state=TrialState.FAIL)
        return
    store_evaluation(asked, evaluation)
    # Constraints come last: a retried trial inherits old ones, and a second set is ignored.
    for name, value in violations(evaluation, space.constraints).items():
        asked.set_constraint(name, value)
    study.tell(asked, [objective_value(evaluation, objective) for objective in space.objectives])


def violations(evaluation: Evaluation, constraints: Constraints) -> dict[str, float]:
    """How far each stated limit is exceeded; ≤ 0 where it is met."""
    found = {}
    if constraints.max_drop is not None:
        found["drop"] = evaluation.drop - constraints.max_drop - TOLERANCE
    if constraints.max_latency_ms is not None:
        found["latency_ms"] = evaluation.latency_ms.median - constraints.max_latency_ms
    if constraints.max_size_mb is not None:
        found["size_mb"] = evaluation.size_bytes / 1e6 - constraints.max_size_mb
    return found


def objective_value(evaluation: Evaluation, objective: Objective) -> float:
    """Relative to FP32 on this machine, so that its drift over hours cancels; smaller is better."""
    return 1 / evaluation.compression if objective == "size" else 1 / evaluation.speedup.median


def best_of(trials: Sequence[Trial], objective: Objective) -> Trial | None:
    """The feasible trial that is best in the first objective; None where none is feasible.

    Among those that the measurement cannot tell from the very best (within its interval, and EQUAL at most), the one
    closest to FP32: a lucky timing does not decide, and what is closer holds better on data not seen.
    """
    feasible = [trial for trial in trials if trial.feasible]
    if not feasible:
        return None
    top = min(feasible, key=lambda trial: _value(trial, objective))
    limit = min(_pessimistic_value(top, objective), (1 + EQUAL) * _value(top, objective))
    return min((t for t in feasible if _value(t, objective) <= limit), key=_distance)


def _value(trial: Trial, objective: Objective) -> float:
    return objective_value(_measured(trial), objective)


def _pessimistic_value(trial: Trial, objective: Objective) -> float:
    """The objective at the bad end of its interval; a size has none."""
    return _value(trial, objective) if objective == "size" else 1 / _measured(trial).speedup.low


def _distance(trial: Trial) -> float:
    found = _measured(trial)
    return found.output_mse if found.kl is None else found.kl


def _measured(trial: Trial) -> Evaluation:
    if trial.evaluation is None:
        raise ValueError(f"trial {trial.number} has no evaluation")
    return trial.evaluation
