"""The search loop: ask, evaluate on the runtime, tell; a callback sees every finished trial.

Any number of processes may run it on one study. They propose in turn, so that none proposes what another evaluates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from mixq.config import MixedPrecisionConfig
from mixq.errors import MixqError
from mixq.evaluation import Candidate, DroppedError, Evaluation, Glimpse
from mixq.evaluator import Evaluator
from mixq.searcher.choices import Choices, Params
from mixq.searcher.history import History
from mixq.searcher.interrupted import Heart, given_up
from mixq.searcher.judge import judge_for
from mixq.searcher.objective import is_contender, objective_value, violations
from mixq.searcher.samplers import Distinct, distributions
from mixq.searcher.space import SearchSpace
from mixq.searcher.stop import Ending
from mixq.searcher.storage import Turn, patiently
from mixq.searcher.study import (
    ELAPSED,
    MODEL_SHA256,
    ORIGIN,
    REASON,
    SECONDS,
    VALUES,
    Frozen,
    begin_trial,
    read_trials,
    seen_configs,
    store_found,
    store_trial,
    trial_of,
)
from mixq.searcher.trial import Trial
from mixq.stopwatch import Stopwatch

QUEUED = "mixq:queued"
REPEATS = 5  # proposals in a row that were all evaluated before: the space is used up

Begun = tuple[optuna.Trial, MixedPrecisionConfig]
OnTrial = Callable[[Trial], object]
Figures = Mapping[str, float | str]
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
    beside: History | None = None,
) -> None:
    """Evaluate configurations until the budget is spent, a stop is requested, or the space is used up.

    `watch` measures what is spent on proposing them and on keeping the study. queued_only: until the queue is empty.
    turn: among the processes that propose. keep: is given what may become the best, before others learn of it.
    beside: what this process holds of the study already.
    """
    watch, history, repeats = watch or Stopwatch(), History(study, beside), 0

    def proposed() -> tuple[Frozen, Begun | None] | None:
        with ExitStack() as begun_in_turn, turn():
            known = read_trials(study)  # once: each reading takes a storage a dozen queries
            if _is_spent(known, budget, queued_only):
                return None
            begun = _begun(study, known, choices, space)
            if begun is not None:  # where the turn was lost meanwhile, another may have begun the same
                begun_in_turn.enter_context(given_up(study, begun[0]))
            return known, begun

    with Heart() as heart:
        while not stop.requested and not budget.timed_out and repeats < REPEATS:
            with watch.measuring("propose"):
                found = patiently(proposed)
            if found is None:
                return
            known, begun = found
            repeats = repeats + 1 if begun is None else 0
            if begun is None:
                continue
            asked, config = begun
            heart.beat_for(asked)
            with given_up(study, asked):
                history.update(known)
                start, origin = time.perf_counter(), asked.user_attrs[ORIGIN]
                outcome = _outcome(evaluator, config, origin, space, history.trials, progress)
                with watch.measuring("keep the study"):
                    digest, seconds = _kept(outcome, keep, space, history.trials), time.perf_counter() - start
                    figures: Figures = {MODEL_SHA256: digest, SECONDS: seconds, ELAPSED: budget.elapsed_s}
                    outcome = replace(outcome, figures=figures)
                    told = _told(study, asked, outcome, space)
            heart.beat_for(None)
            if told is not None:
                on_trial(told)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial. found: None where it failed; candidate: where it was evaluated whole."""

    found: Evaluation | Glimpse | None
    candidate: Candidate | None = None
    reason: str = ""
    figures: Figures = field(default_factory=dict)

    @property
    def attributes(self) -> Figures:
        """What Optuna is to keep of it, beside what was found."""
        return {**self.figures, **({REASON: self.reason} if self.reason else {})}


def _is_spent(trials: Frozen, budget: Budget, queued_only: bool) -> bool:
    return (queued_only and not _waiting(trials)) or len(seen_configs(trials)) >= budget.trials


def _waiting(trials: Frozen) -> bool:
    return any(trial.state is TrialState.WAITING for trial in trials)


def _begun(study: optuna.Study, trials: Frozen, choices: Choices, space: SearchSpace) -> Begun | None:
    """A trial that runs, and its configuration; None where what is proposed was seen before. trials: all there are."""
    seen, spaces, sampler = seen_configs(trials), distributions(choices), study.sampler
    params = sampler.propose(trials) if isinstance(sampler, Distinct) and not _waiting(trials) else None
    if params is not None:
        config = choices.config(params)
        if config.id in seen:
            return None
        return begin_trial(study, {name: params[name] for name in spaces}, spaces, config, space.sampler), config
    asked = study.ask(spaces)
    config = choices.config({name: str(value) for name, value in asked.params.items()})
    if config.id in seen:
        with suppress(UpdateFinishedTrialError):  # told twice, as the storage was away
            study.tell(asked, state=TrialState.PRUNED)
        return None
    store_trial(asked, config, asked.user_attrs.get(ORIGIN, space.sampler))
    return asked, config


def _outcome(
    evaluator: Evaluator,
    config: MixedPrecisionConfig,
    origin: str,
    space: SearchSpace,
    trials: Sequence[Trial],
    progress: Callable[[str], None] | None,
) -> Outcome:
    try:
        with evaluator.turns.working():
            before_training = judge_for(origin, space, trials, trains=bool(config.qat_layers))
            candidate = evaluator.prepare(config, progress, before_training)
            return Outcome(evaluator.evaluate(candidate, judge_for(origin, space, trials)), candidate)
    except DroppedError as dropped:
        return Outcome(dropped.glimpse, reason=dropped.reason)
    except (MixqError, RuntimeError, MemoryError) as error:  # the next configuration may not have this trouble
        return Outcome(None, reason=f"{type(error).__name__}: {error}")


def _kept(outcome: Outcome, keep: Keep | None, space: SearchSpace, trials: Sequence[Trial]) -> str:
    """The SHA-256 of the bytes, if they were kept: those of what may become the best."""
    found = outcome.found
    if keep is None or outcome.candidate is None or not isinstance(found, Evaluation):
        return ""
    if any(value > 0 for value in violations(found, space.constraints).values()):
        return ""
    return keep(outcome.candidate) if is_contender(found, trials, space.objectives[0]) else ""


def _told(study: optuna.Study, asked: optuna.Trial, outcome: Outcome, space: SearchSpace) -> Trial | None:
    """The trial, its outcome stored; None where another process has given it up, and it is tried again. Repeatable."""
    try:
        _tell(study, asked, outcome, space)
    except UpdateFinishedTrialError:
        if study.get_trials(deepcopy=False)[asked.number].state is TrialState.FAIL:
            return None
    return trial_of(study.get_trials(deepcopy=False)[asked.number])


def _tell(study: optuna.Study, asked: optuna.Trial, outcome: Outcome, space: SearchSpace) -> None:
    found = outcome.found
    for name, value in outcome.attributes.items():
        asked.set_user_attr(name, value)
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
