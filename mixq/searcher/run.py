"""The search loop: ask, evaluate on the runtime, tell; a callback sees every finished trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
)
from mixq.searcher.trial import Trial

WARM = "mixq:warm"
TOLERANCE = 1e-9  # 0.72 − 0.715 is not quite 0.005
EQUAL = {"latency": 0.03, "size": 0.0}  # relative difference below which accuracy decides; a size is exact
REPEATS = 5  # proposals in a row that were all evaluated before: the space is used up

OnTrial = Callable[[Trial, Candidate | None], None]


@dataclass(frozen=True)
class Budget:
    """trials: of the whole study, those of earlier runs included; began, deadline: times of time.monotonic().

    earlier_s: seconds that earlier runs of the study spent.
    """

    trials: int
    began: float
    deadline: float | None = None
    earlier_s: float = 0.0

    def after(self, trials: Sequence[Trial]) -> Budget:
        """Of a run that resumes a study with these trials."""
        return replace(self, earlier_s=max((trial.elapsed_s for trial in trials), default=0.0))

    @property
    def run_s(self) -> float:
        """Seconds that this run has spent."""
        return time.monotonic() - self.began

    @property
    def elapsed_s(self) -> float:
        """Seconds that the study has spent, pauses between runs left out."""
        return self.earlier_s + self.run_s

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
    repeats = 0
    while not stop.requested and not budget.timed_out and repeats < REPEATS:
        seen = seen_configs(study)
        if len(seen) >= budget.trials:
            return
        asked = study.ask(distributions(choices))
        config = choices.config({name: str(value) for name, value in asked.params.items()})
        if config.id in seen:
            study.tell(asked, state=TrialState.PRUNED)
            repeats += 1
            continue
        repeats = 0
        store_trial(asked, config, asked.user_attrs.get(ORIGIN, space.sampler))
        start, found = time.perf_counter(), None
        try:
            candidate = evaluator.prepare(config, progress)
            found = candidate, evaluator.evaluate(candidate)
        except (MixqError, RuntimeError, MemoryError) as error:  # the next configuration may not have this trouble
            asked.set_user_attr(REASON, f"{type(error).__name__}: {error}")
        asked.set_user_attr(SECONDS, time.perf_counter() - start)
        asked.set_user_attr(ELAPSED, budget.elapsed_s)
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


def cautious_value(evaluation: Evaluation, objective: Objective) -> float:
    """`objective_value` at the bad end of its 95 % interval; a size has none."""
    return objective_value(evaluation, objective) if objective == "size" else 1 / evaluation.speedup.low


def _distance(evaluation: Evaluation) -> float:
    return evaluation.output_mse if evaluation.kl is None else evaluation.kl
