"""The search loop: ask, evaluate on the runtime, tell; a callback sees every finished trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import TrialState

from mixq.errors import MixqError
from mixq.evaluation import Candidate, DroppedError, Evaluation, Glimpse
from mixq.evaluator import Evaluator
from mixq.searcher.choices import Choices, Params
from mixq.searcher.judge import judge_for
from mixq.searcher.objective import objective_value, violations
from mixq.searcher.samplers import distributions
from mixq.searcher.space import SearchSpace
from mixq.searcher.stop import Stop
from mixq.searcher.study import (
    ELAPSED,
    ORIGIN,
    REASON,
    SECONDS,
    VALUES,
    seen_configs,
    store_found,
    store_trial,
    trial_of,
    trials_of,
)
from mixq.searcher.trial import Trial
from mixq.stopwatch import Stopwatch

QUEUED = "mixq:queued"
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


def enqueue(study: optuna.Study, name: str, starts: Sequence[tuple[str, Params]]) -> None:
    """Queue the starts called `name`, once in the life of a study."""
    if study.user_attrs.get(f"{QUEUED}:{name}"):
        return
    for origin, params in starts:
        study.enqueue_trial(dict(params), user_attrs={ORIGIN: origin}, skip_if_exists=True)
    study.set_user_attr(f"{QUEUED}:{name}", True)


def run(
    study: optuna.Study,
    evaluator: Evaluator,
    choices: Choices,
    space: SearchSpace,
    budget: Budget,
    stop: Stop,
    on_trial: OnTrial,
    progress: Callable[[str], None] | None = None,
    watch: Stopwatch | None = None,
    *,
    queued_only: bool = False,
) -> None:
    """Evaluate configurations until the budget is spent, a stop is requested, or the space is used up.

    `watch` measures what is spent on proposing them and on keeping the study. queued_only: until the queue is empty.
    """
    watch = watch or Stopwatch()
    repeats, trials = 0, trials_of(study)
    while not stop.requested and not budget.timed_out and repeats < REPEATS:
        if queued_only and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return
        with watch.measuring("propose"):
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
        origin = asked.user_attrs.get(ORIGIN, space.sampler)
        with watch.measuring("keep the study"):
            store_trial(asked, config, origin)
        start, candidate = time.perf_counter(), None
        try:
            before_training = judge_for(origin, space, trials, trains=bool(config.qat_layers))
            candidate = evaluator.prepare(config, progress, before_training)
            found: Evaluation | Glimpse | None = evaluator.evaluate(candidate, judge_for(origin, space, trials))
        except DroppedError as dropped:
            asked.set_user_attr(REASON, dropped.reason)
            found = dropped.glimpse
        except (MixqError, RuntimeError, MemoryError) as error:  # the next configuration may not have this trouble
            asked.set_user_attr(REASON, f"{type(error).__name__}: {error}")
            found = None
        with watch.measuring("keep the study"):
            asked.set_user_attr(SECONDS, time.perf_counter() - start)
            asked.set_user_attr(ELAPSED, budget.elapsed_s)
            _tell(study, asked, found, space)
            trials.append(trial_of(study.get_trials(deepcopy=False)[asked.number]))
        on_trial(trials[-1], candidate if isinstance(found, Evaluation) else None)


def _tell(study: optuna.Study, asked: optuna.Trial, found: Evaluation | Glimpse | None, space: SearchSpace) -> None:
    if found is None:
        study.tell(asked, state=TrialState.FAIL)
        return
    store_found(asked, found)
    # Constraints come last: a retried trial inherits old ones, and a second set is ignored.
    for name, value in violations(found, space.constraints).items():
        asked.set_constraint(name, value)
    values = [objective_value(found, objective) for objective in space.objectives]
    if isinstance(found, Evaluation):
        study.tell(asked, values)
    else:
        asked.set_user_attr(VALUES, values)  # Optuna keeps none of a pruned trial
        study.tell(asked, state=TrialState.PRUNED)
