"""The search loop: ask, evaluate on the runtime, tell; a callback sees every finished trial.

Any number of processes may run it on one study. They propose in turn, so that none proposes what another evaluates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from mixq.config import MixedPrecisionConfig
from mixq.errors import MixqError
from mixq.evaluation import Candidate, DroppedError, Evaluation, Glimpse
from mixq.evaluator import Evaluator
from mixq.searcher.choices import Choices, Params
from mixq.searcher.history import History
from mixq.searcher.interrupted import Heart
from mixq.searcher.judge import judge_for
from mixq.searcher.objective import is_contender, objective_value, violations
from mixq.searcher.samplers import distributions
from mixq.searcher.space import SearchSpace
from mixq.searcher.stop import Ending
from mixq.searcher.storage import Turn
from mixq.searcher.study import (
    ELAPSED,
    MODEL_SHA256,
    ORIGIN,
    REASON,
    SECONDS,
    VALUES,
    seen_configs,
    store_found,
    store_trial,
    trial_of,
)
from mixq.searcher.trial import Trial
from mixq.stopwatch import Stopwatch

QUEUED = "mixq:queued"
REPEATS = 5  # proposals in a row that were all evaluated before: the space is used up

OnTrial = Callable[[Trial], None]
Keep = Callable[[Candidate], str]
"""Keeps the bytes that were measured, of what may become the best; their SHA-256."""


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
    if is_queued(study, name):
        return
    for origin, params in starts:
        study.enqueue_trial(dict(params), user_attrs={ORIGIN: origin}, skip_if_exists=True)
    study.set_user_attr(f"{QUEUED}:{name}", True)


def is_queued(study: optuna.Study, name: str) -> bool:
    return bool(study.user_attrs.get(f"{QUEUED}:{name}"))


def run(
    study: optuna.Study,
    evaluator: Evaluator,
    choices: Choices,
    space: SearchSpace,
    budget: Budget,
    stop: Ending,
    on_trial: OnTrial,
    progress: Callable[[str], None] | None = None,
    watch: Stopwatch | None = None,
    *,
    queued_only: bool = False,
    turn: Turn = nullcontext,
    keep: Keep | None = None,
) -> None:
    """Evaluate configurations until the budget is spent, a stop is requested, or the space is used up.

    `watch` measures what is spent on proposing them and on keeping the study. queued_only: until the queue is empty.
    turn: among the processes that propose. keep: is given what may become the best, before others learn of it.
    """
    watch, history, repeats = watch or Stopwatch(), History(study), 0
    with Heart() as heart:
        while not stop.requested and not budget.timed_out and repeats < REPEATS:
            with watch.measuring("propose"), turn():
                if _is_spent(study, budget, queued_only):
                    return
                asked, config = _proposed(study, choices, space)
            repeats = repeats + 1 if config is None else 0
            if config is None:
                continue
            heart.beat_for(asked)
            history.update()
            start = time.perf_counter()
            try:
                found, candidate = _evaluated(evaluator, asked, config, space, history.trials, progress)
                with watch.measuring("keep the study"):
                    if keep is not None and candidate is not None and _is_promising(found, space, history.trials):
                        asked.set_user_attr(MODEL_SHA256, keep(candidate))
                    asked.set_user_attr(SECONDS, time.perf_counter() - start)
                    asked.set_user_attr(ELAPSED, budget.elapsed_s)
                    _tell(study, asked, found, space)
            except UpdateFinishedTrialError:
                continue  # this process seemed to be gone, and another one tries it again
            finally:
                heart.beat_for(None)
            on_trial(trial_of(study.get_trials(deepcopy=False)[asked.number]))


def _is_spent(study: optuna.Study, budget: Budget, queued_only: bool) -> bool:
    if queued_only and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return True
    return len(seen_configs(study)) >= budget.trials


def _proposed(
    study: optuna.Study, choices: Choices, space: SearchSpace
) -> tuple[optuna.Trial, MixedPrecisionConfig | None]:
    """A trial that runs, and its configuration; None where that was seen before, and the trial is over."""
    seen = seen_configs(study)
    asked = study.ask(distributions(choices))
    config = choices.config({name: str(value) for name, value in asked.params.items()})
    if config.id in seen:
        study.tell(asked, state=TrialState.PRUNED)
        return asked, None
    store_trial(asked, config, asked.user_attrs.get(ORIGIN, space.sampler))
    return asked, config


def _evaluated(
    evaluator: Evaluator,
    asked: optuna.Trial,
    config: MixedPrecisionConfig,
    space: SearchSpace,
    trials: Sequence[Trial],
    progress: Callable[[str], None] | None,
) -> tuple[Evaluation | Glimpse | None, Candidate | None]:
    """What was found, None where it failed; and the candidate, where it was evaluated whole."""
    origin = asked.user_attrs[ORIGIN]
    try:
        with evaluator.turns.working():
            before_training = judge_for(origin, space, trials, trains=bool(config.qat_layers))
            candidate = evaluator.prepare(config, progress, before_training)
            return evaluator.evaluate(candidate, judge_for(origin, space, trials)), candidate
    except DroppedError as dropped:
        asked.set_user_attr(REASON, dropped.reason)
        return dropped.glimpse, None
    except UpdateFinishedTrialError:
        raise
    except (MixqError, RuntimeError, MemoryError) as error:  # the next configuration may not have this trouble
        asked.set_user_attr(REASON, f"{type(error).__name__}: {error}")
        return None, None


def _is_promising(found: Evaluation | Glimpse | None, space: SearchSpace, trials: Sequence[Trial]) -> bool:
    if not isinstance(found, Evaluation) or any(value > 0 for value in violations(found, space.constraints).values()):
        return False
    return is_contender(found, trials, space.objectives[0])


def _tell(study: optuna.Study, asked: optuna.Trial, found: Evaluation | Glimpse | None, space: SearchSpace) -> None:
    if found is None:
        study.tell(asked, state=TrialState.FAIL)
        return
    store_found(asked, found)
    for name, value in violations(found, space.constraints).items():
        asked.set_constraint(name, value)
    values = [objective_value(found, objective) for objective in space.objectives]
    if isinstance(found, Evaluation):
        study.tell(asked, values)
    else:
        asked.set_user_attr(VALUES, values)  # Optuna keeps none of a pruned trial
        study.tell(asked, state=TrialState.PRUNED)
