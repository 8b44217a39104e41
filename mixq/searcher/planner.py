"""Planner: proposes what the models of cost and error say is best, at the error where trials begin to fail.

Trials tell both models how far they are off. Costs and errors are drawn from what the trials leave possible (Thompson
sampling, Russo et al. 2018), so that proposals differ where something is still to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from optuna.trial import FrozenTrial

from mixq.config import Training
from mixq.searcher.choices import RATE, RECIPE, STEPS, Choices, Params
from mixq.searcher.cost import CostModel, Observation
from mixq.searcher.solve import SMALLEST_CHARGE, Errors, Prices, cheapest_within
from mixq.searcher.study import EVALUATION, GLIMPSE, SECONDS, is_feasible

SPREAD = 0.1  # of the logarithm of the error that is aimed at
SHARES = tuple(np.geomspace(0.02, 2.0, 21).tolist())  # of a layer's error, that training may leave
DOUBT = 0.3  # of a layer's error, relative: how far it may be off before trials tell
DOUBT_OF_ALL = 0.1  # the same, relative to the mean of all layers: what is predicted to be nothing may be something
MISFIT = 0.15  # of a configuration's error, relative: what no layer's error explains
LEAST_SHARE = 0.1  # of what all layers have in common: a layer's error is not drawn below
STEP_DOWN = 4.0  # below the least error that failed, where nothing with an error passed yet
FIRST_SHARES = (1 / 16, 1 / 8)  # the one more likely to pass comes first; answers change with the error's root


@dataclass(frozen=True)
class Tried:
    """What a trial says: predicted and measured error (None: not known), and whether it passed."""

    params: Params
    predicted: float
    measured: float | None
    passed: bool

    @property
    def recipe(self) -> str:
        return self.params[RECIPE]


class Planner:
    """Proposes parameters; knows the trials of one study, each looked at once."""

    def __init__(self, choices: Choices, cost: CostModel, errors: Errors, prices: Prices | None = None) -> None:
        """`prices`: of an objective that is known exactly, such as size; else those of `cost`, as trials teach it."""
        self._choices, self._cost, self.errors = choices, cost, errors
        self._prices = prices
        self._seen: set[int] = set()
        self._observations: list[Observation] = []
        self._tried: list[Tried] = []
        self._seconds = dict.fromkeys((False, True), 0.0)  # of trials that train, and of the others

    def propose(self, trials: Sequence[FrozenTrial], rng: np.random.Generator) -> Params:
        """The cheapest within an error drawn around that where trials fail, by draws of costs and errors.

        Layers are trained only where `may_train`.
        """
        choices = self._choices if self.may_train(trials) else self._choices.untrained
        recipe = self._best_recipe(rng)
        limit = self._limit() * float(np.exp(SPREAD * rng.standard_normal()))
        return self._cheapest(choices, recipe, self._drawn(recipe, rng), limit, rng)

    def may_train(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether trials that train layers have taken no more time than the others: dozens of these are done in the
        time of one training."""
        self._learn(trials)
        return self._seconds[True] <= self._seconds[False]

    def first(self, trials: Sequence[FrozenTrial], rng: np.random.Generator) -> list[Params]:
        """Where trials have failed: the cheapest within FIRST_SHARES of the least error of these, by the first recipe.

        Untrained. A network that is quantized in part is at hand so before a longer recipe is done, or ladders climbed.
        """
        self._learn(trials)
        recipe = next(iter(self._choices.recipes))
        failed = [tried.predicted for tried in self._tried if not tried.passed and tried.predicted > 0]
        untrained = self._choices.untrained
        limits = [share * min(failed) for share in FIRST_SHARES if failed]
        return [self._cheapest(untrained, recipe, self.errors, limit, rng) for limit in limits]

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            if trial.number not in self._seen:
                self._look_at(trial)
        self._learn_training()

    def _drawn(self, recipe: str, rng: np.random.Generator) -> Errors:
        """A draw of the errors that the recipe's trials leave possible.

        Each layer's is the predicted one times a factor. The factors are Gaussian, about what all have in common, and a
        trial measures the sum of its layers' errors; sampled by Matheron's rule (Wilson et al. 2021, section 2.3).
        """
        common = self._factor(recipe)
        seen = [t for t in self._tried if t.recipe == recipe and t.measured and t.predicted > 0]
        own = np.maximum(self.errors.own, SMALLEST_CHARGE)
        deviation = common * (DOUBT + DOUBT_OF_ALL * own.mean() / own)
        drawn = common + deviation * rng.standard_normal(len(own))
        if seen:
            parts = np.stack([self.errors.parts(t.params) for t in seen])
            wanted = np.array([t.measured for t in seen], np.float64)
            noise = MISFIT * wanted
            spread = parts * deviation**2
            missed = wanted - parts @ drawn - noise * rng.standard_normal(len(seen))
            drawn += spread.T @ np.linalg.solve(spread @ parts.T + np.diag(noise**2), missed)
        return self.errors.times(np.maximum(drawn, LEAST_SHARE * common))

    def _cheapest(
        self, choices: Choices, recipe: str, errors: Errors, limit: float, rng: np.random.Generator
    ) -> Params:
        """By a draw of the costs; limit: of the predicted error."""
        if self._prices is None:
            self._cost.fit(self._observations, rng)
        prices = self._prices or Prices(
            lambda unit, kind: self._cost.term(unit.name, kind),
            lambda kind: self._cost.term("rest", kind),
            lambda a, b: self._cost.term("border", a, b),
            self._cost.crossings,
        )
        return cheapest_within(choices, prices, errors, limit, self._fixed(recipe))

    def _look_at(self, trial: FrozenTrial) -> None:
        found = trial.user_attrs.get(EVALUATION) or trial.user_attrs.get(GLIMPSE)
        self._seen.add(trial.number)
        params = {name: str(value) for name, value in trial.params.items()}
        self._seconds[self.errors.trains(params)] += trial.user_attrs.get(SECONDS, 0.0)
        if not isinstance(found, Mapping):
            return
        speedup = found["speedup"]
        deviation = (1 / speedup["low"] - 1 / speedup["high"]) / 4
        self._observations.append(self._cost.observe(params, 1 / speedup["median"], deviation))
        measured = found.get("output_mse") if found.get("kl") is None else found["kl"]
        if EVALUATION in trial.user_attrs or not is_feasible(trial):
            self._tried.append(
                Tried(
                    params,
                    self.errors.error(params),
                    measured,
                    EVALUATION in trial.user_attrs and is_feasible(trial),
                )
            )

    def _learn_training(self) -> None:
        """What training leaves of a layer's error, as the trials that trained layers tell it."""
        trained = [t for t in self._tried if t.measured and self.errors.trains(t.params)]
        if not trained:
            return
        wanted = [np.log(t.measured / self._factor(t.recipe)) for t in trained if t.measured]

        def misfit(share: float) -> float:
            self.errors.trained = share
            found = [np.log(max(self.errors.error(t.params), SMALLEST_CHARGE)) for t in trained]
            return float(np.abs(np.subtract(found, wanted)).sum())

        self.errors.trained = min(SHARES, key=misfit)
        self._tried = [replace(t, predicted=self.errors.error(t.params)) for t in self._tried]

    def _factor(self, recipe: str) -> float:
        """Measured ÷ predicted errors of a recipe without training, the median; of all recipes where it has none."""
        ratios = [
            (t.recipe, t.measured / t.predicted)
            for t in self._tried
            if t.measured and t.predicted > 0 and not self.errors.trains(t.params)
        ]
        own = [ratio for name, ratio in ratios if name == recipe] or [ratio for _, ratio in ratios]
        return float(np.median(own)) if own else 1.0

    def _best_recipe(self, rng: np.random.Generator) -> str:
        """That of the least errors; now and then another."""
        names = list(self._choices.recipes)
        if rng.random() < 0.15:
            return str(rng.choice(names))
        known = {tried.recipe for tried in self._tried if tried.predicted > 0 and tried.measured}
        return min((name for name in names if name in known), key=self._factor, default=names[0])

    def _limit(self) -> float:
        """Between the errors of those that pass and those that do not."""
        errors = [(t.measured or t.predicted * self._factor(t.recipe), t.passed) for t in self._tried]
        passed = max((error for error, ok in errors if ok), default=0.0)
        beyond = [error for error, ok in errors if not ok and error > 0]
        above = [error for error in beyond if error > passed]
        if not beyond:
            return np.inf
        if passed <= 0:
            return min(beyond) / STEP_DOWN
        return float(np.sqrt(passed * (min(above) if above else max(beyond))))

    def _training(self) -> Training:
        """Of those that were tried, that of the least errors, relative to what was predicted; where none of its trials
        passed, the next longer one. The first where none was tried."""
        tried: dict[Training, list[Tried]] = {}
        for trial in self._tried:
            if self.errors.trains(trial.params):
                tried.setdefault(self._choices.training_of(trial.params), []).append(trial)
        if not tried:
            return self._choices.training[0]
        best = min(tried, key=lambda training: _left(tried[training]))
        longer = [t for t in self._choices.training if t.learning_rate == best.learning_rate and t.steps > best.steps]
        if any(trial.passed for trial in tried[best]) or not longer:
            return best
        return min(longer, key=lambda training: training.steps)

    def _fixed(self, recipe: str) -> Params:
        fixed = {RECIPE: recipe}
        if self._choices.training:
            best = self._training()
            fixed |= {STEPS: str(best.steps), RATE: repr(best.learning_rate)}
        return fixed


def _left(tried: Sequence[Tried]) -> float:
    """Measured ÷ predicted errors, the median; infinite where none was measured."""
    ratios = [trial.measured / trial.predicted for trial in tried if trial.measured and trial.predicted > 0]
    return float(np.median(ratios)) if ratios else np.inf
