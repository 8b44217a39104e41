"""Cost: predicts the latency of any configuration from the runtime's own profiles, and learns from every trial.

Latency, relative to FP32's, is a sum: what each layer takes in its kind of scheme, what the ops that are no layers take
under each `rest`, and what each border between two kinds takes for each element that crosses it. The terms
start from the profiles and are drawn to what trials measure, by linear regression with a Gaussian prior (Bishop 2006,
section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product

import numpy as np

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.graph import Graph
from mixq.graph.borders import find_borders
from mixq.searcher.choices import REST, Choices, Params, Unit
from mixq.task import Array

LAYERS = 0.85  # of FP32's latency, until trials tell better
TRUST = 0.3  # relative deviation of a profile's times from the truth
WORST_BORDERS = 0.3  # of FP32's latency, if all that layers read were converted
NOISE = 0.02  # relative: what the sum leaves unexplained, beside a speed-up's own interval

Profiles = Mapping[str, Mapping[str, float]]
"""By kind of scheme, the µs of each layer in a network that has it everywhere."""
Term = tuple[str, ...]


def take_profiles(evaluator: Evaluator, choices: Choices) -> Profiles:
    """The times of all layers, in one network for each kind of scheme that some unit may have; FP32 always."""
    kinds = dict.fromkeys(["fp32", *(kind for unit in choices.units for kind in _kinds(unit))])
    return {kind: {k.layer: k.time_us or 0.0 for k in evaluator.profile(_uniform(evaluator, kind))} for kind in kinds}


def _uniform(evaluator: Evaluator, kind: str) -> Candidate:
    """Every layer of one kind, but for those that the runtime cannot run so."""
    scheme, fp32 = LayerScheme.parse(kind), LayerScheme(precision=Precision.FP32)
    schemes = {
        layer.name: scheme if evaluator.runtime.refusal(scheme, layer) is None else fp32
        for layer in evaluator.graph.layers
    }
    return evaluator.prepare(MixedPrecisionConfig(model=evaluator.fingerprint, schemes=schemes))


@dataclass(frozen=True)
class Observation:
    """What a trial measured: 1 ÷ speed-up, and its deviation; features: what it is made of, by term."""

    features: Array
    cost: float
    deviation: float


@dataclass
class CostModel:
    """Terms by name: (unit, kind of scheme), ("rest", precision), ("border", kind written, kind read)."""

    choices: Choices
    graph: Graph
    profiles: Profiles
    _terms: dict[Term, int] = field(init=False)

    def __post_init__(self) -> None:
        self.crossings = _crossings(self.choices, self.graph)
        kinds = sorted({kind for unit in self.choices.units for kind in _kinds(unit)})
        named: list[Term] = [(unit.name, kind) for unit in self.choices.units for kind in _kinds(unit)]
        named += [("rest", rest.value) for rest in self.choices.rest]
        named += [("border", a, b) for a, b in product(kinds, kinds) if a != b]
        self._terms = {term: number for number, term in enumerate(named)}
        self._mean, self._spread = self._prior()
        self.weights = self._mean

    def predict(self, params: Params) -> float:
        """Latency ÷ FP32's."""
        return float(self._features(params) @ self.weights)

    def term(self, *name: str) -> float:
        """The weight of a term; 0 for one that there is not."""
        number = self._terms.get(name)
        return 0.0 if number is None else float(self.weights[number])

    def observe(self, params: Params, cost: float, deviation: float) -> Observation:
        """What a trial with these parameters measured."""
        return Observation(self._features(params), cost, deviation)

    def fit(self, seen: Sequence[Observation], rng: np.random.Generator | None = None) -> None:
        """Draw the terms to what was measured; with `rng`, to a sample of what the measurements leave possible.

        Sampled by Matheron's rule: a draw from the prior, corrected by what it does not explain.
        """
        start = self._mean.copy()
        if rng is not None:
            start = start + self._spread * rng.standard_normal(len(start))
        if not seen:
            self.weights = start
            return
        rows = np.stack([one.features for one in seen])
        deviation = np.array([np.hypot(one.deviation, NOISE * one.cost) for one in seen])
        wanted = np.array([one.cost for one in seen])
        if rng is not None:
            wanted = wanted + deviation * rng.standard_normal(len(wanted))
        spread = rows * self._spread**2
        gain = np.linalg.solve(spread @ rows.T + np.diag(deviation**2), wanted - rows @ start)
        self.weights = start + spread.T @ gain

    def _features(self, params: Params) -> Array:
        found = np.zeros(len(self._terms))
        for unit in self.choices.units:
            found[self._terms[unit.name, kind_of(params[unit.name])]] = 1
        found[self._terms["rest", params[REST]]] = 1
        for (writer, reader), share in self.crossings.items():
            written, read = kind_of(params[writer]), kind_of(params[reader])
            if written != read:
                found[self._terms["border", written, read]] += share
        return found

    def _prior(self) -> tuple[Array, Array]:
        """Means and deviations of all terms."""
        mean, spread = np.zeros(len(self._terms)), np.zeros(len(self._terms))
        fp32 = self.profiles.get("fp32", {})
        scale = LAYERS / (sum(fp32.values()) or 1.0)
        least = 0.1 / len(self.choices.units)
        for unit in self.choices.units:
            for kind in _kinds(unit):
                times = self.profiles.get(kind, fp32)
                number = self._terms[unit.name, kind]
                mean[number] = scale * sum(times.get(layer, 0.0) for layer in unit.layers)
                spread[number] = TRUST * mean[number] + TRUST * least
        for name, number in self._terms.items():
            if name[0] == "rest" and len(name) == 2 and name[1] in {rest.value for rest in self.choices.rest}:
                mean[number], spread[number] = 1 - LAYERS, TRUST
            elif len(name) == 3:
                spread[number] = WORST_BORDERS
        return mean, spread


def _kinds(unit: Unit) -> list[str]:
    return sorted({kind_of(str(scheme)) for scheme in unit.schemes})


@lru_cache
def kind_of(scheme: str) -> str:
    """What a scheme's speed depends on: all of it but the training."""
    return str(LayerScheme.parse(scheme).untrained)


def _crossings(choices: Choices, graph: Graph) -> dict[tuple[str, str], float]:
    """By pair of units, the share of all elements that layers read which the second reads of the first."""
    unit_of = {layer: unit.name for unit in choices.units for layer in unit.layers}
    borders = find_borders(graph)
    total = sum(border.elements for border in borders) or 1
    found: dict[tuple[str, str], float] = {}
    for border in borders:
        pair = unit_of[border.writer], unit_of[border.reader]
        if pair[0] != pair[1]:
            found[pair] = found.get(pair, 0.0) + border.elements / total
    return found
