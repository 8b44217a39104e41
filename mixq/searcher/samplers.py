"""Samplers by name. All of them propose configurations that were not evaluated yet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mixq.searcher.choices import Choices, Params
from mixq.searcher.guided import Guide, Move
from mixq.searcher.study import VALUES, Frozen, is_feasible, seen_configs

TRIES = 20
GUIDED = "guided"
PLANNED = 0.9  # of the proposals of `guided`
DRAWS = 3  # of the planner, which may propose what was tried already
TOLD = (TrialState.COMPLETE, TrialState.PRUNED)
TRIES_OF = {"gp": 2}  # it takes seconds to propose, and asked again proposes the same mostly


def get_sampler(name: str, choices: Choices, guide: Guide, seed: int) -> BaseSampler:
    """The sampler `name` of the table, wrapped so that it never proposes a configuration twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        inner = SAMPLERS[name](choices, guide, seed)
    return Distinct(inner, choices, seed, TRIES_OF.get(name, TRIES))


class Guided(BaseSampler):
    """Our own: most proposals are the planner's, the rest are mutations of the current front.

    Moves that are cheap and insensitive are preferred.
    A feasible parent is made faster: layers go from float to INT8, by saved work over error. An infeasible one is
    made better: layers leave INT8, by error. One layer changes, sometimes more (geometric), sometimes another choice.
    """

    def __init__(self, choices: Choices, guide: Guide, seed: int, planned: float = PLANNED) -> None:
        """planned: the share of proposals that are the planner's."""
        self._choices, self._guide, self._planned = choices, guide, planned
        self._rng = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._choices)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return dict(self.propose(study.get_trials(deepcopy=False)))

    def propose(self, trials: Frozen) -> Params:
        """By all trials of a study."""
        told = [trial for trial in trials if trial.state in TOLD]
        for _ in range(DRAWS if self._rng.random() < self._planned else 0):
            planned = self._guide.planner.propose(told, self._rng)
            if all(planned != trial.params for trial in trials):
                return planned
        parents = front(told)
        if not parents:
            return random_params(self._choices, self._rng)
        parent = parents[int(self._rng.integers(len(parents)))]
        params = {name: str(value) for name, value in parent.params.items()}
        for _ in range(1 + int(self._rng.geometric(0.6) - 1)):
            params |= self._move(params, feasible=is_feasible(parent))
        return params if self._guide.planner.may_train(told) else self._choices.without_training(params)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return str(self._rng.choice(self._choices.categories()[param_name]))

    def _move(self, params: Params, feasible: bool) -> Params:
        moves = self._guide.moves(params, faster=feasible)
        if not moves or self._rng.random() < 0.2:
            return self._any_move(params)
        weights = np.array([move.weight for move in moves])
        chosen: Move = moves[int(self._rng.choice(len(moves), p=weights / weights.sum()))]
        return {chosen.name: chosen.value}

    def _any_move(self, params: Params) -> Params:
        open_names = [name for name, values in self._choices.categories().items() if len(values) > 1]
        if not open_names:
            return {}
        name = str(self._rng.choice(open_names))
        others = [value for value in self._choices.categories()[name] if value != params[name]]
        return {name: str(self._rng.choice(others))}


class Distinct(BaseSampler):
    """Asks `inner` up to `tries` times, then mutates at random, until the configuration is new."""

    def __init__(self, inner: BaseSampler, choices: Choices, seed: int, tries: int = TRIES) -> None:
        self._inner, self._choices, self._tries = inner, choices, tries
        self._rng = np.random.default_rng(seed + 1)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return distributions(self._choices)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._inner.after_trial(study, trial, state, values)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if "fixed_params" in trial.system_attrs:
            return {}  # it was queued with its parameters; a proposal would be thrown away
        seen = seen_configs(study.get_trials(deepcopy=False))
        return dict(self._new(seen, lambda: self._propose(study, trial, search_space)))

    def propose(self, trials: Frozen) -> Params | None:
        """By all trials of a study; None where the inner sampler proposes by way of Optuna only."""
        inner = self._inner
        return self._new(seen_configs(trials), lambda: inner.propose(trials)) if isinstance(inner, Guided) else None

    def _new(self, seen: Collection[str], propose: Callable[[], Params]) -> Params:
        """What `propose` proposes, changed where that was seen."""
        for _ in range(self._tries):
            params = propose()
            if self._choices.config(params).id not in seen:
                return params
        for changes in range(1, 10 * TRIES):
            changed = mutated(params, self._choices, self._rng, math.ceil(changes / TRIES))
            if self._choices.config(changed).id not in seen:
                return changed
        return params  # the space is used up; the study notices

    def _propose(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Params:
        relative = self._inner.infer_relative_search_space(study, trial)
        found = self._inner.sample_relative(study, trial, relative)
        missing = {name: space for name, space in search_space.items() if name not in found}
        for name, space in missing.items():
            found[name] = self._inner.sample_independent(study, trial, name, space)
        return {name: str(value) for name, value in found.items()}


def distributions(choices: Choices) -> dict[str, BaseDistribution]:
    return {name: optuna.distributions.CategoricalDistribution(v) for name, v in choices.categories().items()}


def front(told: Frozen) -> list[FrozenTrial]:
    """Of trials that were told: feasible ones that no other dominates, and those beyond the constraints by least.

    The latter are to be repaired. Pruned trials are among them where it was a constraint that they could not meet.
    """
    feasible = [trial for trial in told if trial.state is TrialState.COMPLETE and is_feasible(trial)]
    beyond = [trial for trial in told if _values(trial) and not is_feasible(trial)]
    best: list[FrozenTrial] = []
    for trial in sorted(feasible, key=_values):  # what dominates a trial comes before it
        if not any(_dominates(other, trial) for other in best):
            best.append(trial)
    fast = [trial for trial in beyond if all(_values(trial)[0] < _values(other)[0] for other in best)]
    return best + sorted(fast, key=lambda trial: sum(max(0.0, v) for v in trial.constraints.values()))[: len(best) or 3]


def _values(trial: FrozenTrial) -> list[float]:
    """The objectives' values; [] where there are none."""
    found: list[float] = trial.values or trial.user_attrs.get(VALUES, [])
    return found


def _dominates(left: FrozenTrial, right: FrozenTrial) -> bool:
    pairs = list(zip(_values(left), _values(right), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def mutated(params: Params, choices: Choices, rng: np.random.Generator, changes: int) -> Params:
    """`params` with `changes` parameters drawn anew."""
    categories = choices.categories()
    names = rng.choice(list(categories), min(changes, len(categories)), replace=False)
    return {**params, **{str(name): str(rng.choice(categories[str(name)])) for name in names}}


def random_params(choices: Choices, rng: np.random.Generator) -> Params:
    return {name: str(rng.choice(values)) for name, values in choices.categories().items()}


SAMPLERS: Mapping[str, Callable[[Choices, Guide, int], BaseSampler]] = {
    GUIDED: Guided,
    "tpe": lambda choices, guide, seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "gp": lambda choices, guide, seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
}
