"""The cheapest configuration within a predicted error: one integer linear program, solved exactly by HiGHS.

A unit takes one scheme, the rest one precision; each border between two units has one variable a pair of kinds of them,
which the units' choices determine. Errors of layers interact: each layer is charged its part in the error of all
units in their worst scheme, and the limit is corrected until the solution's own predicted error fits the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field

import numpy as np

from mixq.config import Stage
from mixq.deltas import Interactions
from mixq.searcher.choices import REST, Choices, Params, Unit
from mixq.searcher.cost import kind_of

QAT = f"-{Stage.QAT}"  # what the name of a scheme with training ends in
SECONDS = 2.0  # for a solution at most
ROUNDS = 4
CLOSE = 0.9  # of the limit: a solution's error need not come nearer
SMALLEST_CHARGE = 1e-15
TRAINED = 0.5  # of a layer's error is left by training, until trials tell


Kinds = dict[str, dict[str, list[int]]]
"""By unit and kind of scheme, the variables of the schemes that are of it."""


@dataclass(frozen=True)
class Prices:
    """What is to be minimized: the cost of a unit in a kind of scheme, of a rest, of a crossing between two kinds."""

    unit: Callable[[Unit, str], float]
    rest: Callable[[str], float]
    border: Callable[[str, str], float]
    crossings: Mapping[tuple[str, str], float]


class Errors:
    """Predicted errors of configurations, from the interactions of layers.

    trained: what training leaves of a layer's error; factors: of each layer's error, by the interactions' keys.
    """

    trained: float = TRAINED

    def __init__(self, choices: Choices, interactions: Interactions) -> None:
        self._interactions = interactions
        self._unit_of = {layer: unit.name for unit in choices.units for layer in unit.layers}
        self.factors = np.ones(len(interactions.keys))

    def times(self, factors: np.ndarray) -> Errors:
        """These errors, each layer's times its factor."""
        found = copy(self)
        found.factors = self.factors * factors
        return found

    def error(self, params: Params) -> float:
        """In nats of KL, else as a share of the outputs' mean square; a trained layer's delta is shortened."""
        return self._interactions.weighted(self._weights(params))

    def worst(self, unit: Unit) -> str:
        """The scheme of the unit in which its layers alone have the greatest error."""
        alone = dict(zip(self._interactions.keys, np.diag(self._interactions.matrix), strict=True))
        return max(map(str, unit.schemes), key=lambda scheme: sum(alone.get((n, scheme), 0.0) for n in unit.layers))

    def charges(self, params: Params) -> dict[tuple[str, str], float]:
        """By unit and analyzed scheme: its part in the error of `params`, all of which sum to that; never negative."""
        pulls = np.sqrt(self.factors) * (self._interactions.matrix @ self._weights(params))
        found: dict[tuple[str, str], float] = {}
        for (layer, scheme), pull, own in zip(self._interactions.keys, pulls, self.own, strict=True):
            key = self._unit_of[layer], scheme
            found[key] = found.get(key, 0.0) + max(float(pull), 0.1 * float(own), SMALLEST_CHARGE)
        return found

    @property
    def own(self) -> np.ndarray:
        """By key: the error of a layer alone, untrained."""
        return np.asarray(self.factors * np.diag(self._interactions.matrix))

    def parts(self, params: Params) -> np.ndarray:
        """By key: its part in the error of `params`; they sum to that."""
        weights = self._weights(params)
        return np.asarray(weights * (self._interactions.matrix @ weights))

    def charge(self, charges: Mapping[tuple[str, str], float], unit: str, scheme: str) -> float:
        """What a unit is charged for a scheme, by `charges`."""
        trained = self.trained if scheme.endswith(QAT) else 1.0
        return trained * charges.get((unit, scheme.removesuffix(QAT)), 0.0)

    def trains(self, params: Params) -> bool:
        """Whether a layer is trained."""
        return any(params[unit].endswith(QAT) for unit in set(self._unit_of.values()))

    def _weights(self, params: Params) -> np.ndarray:
        found = [self._share(params[self._unit_of[layer]], scheme) for layer, scheme in self._interactions.keys]
        return np.sqrt(self.factors) * np.array(found, np.float64)

    def _share(self, chosen: str, analyzed: str) -> float:
        """Of the delta of a layer in the scheme `analyzed`, what it has in the one that was chosen."""
        if chosen == analyzed:
            return 1.0
        return float(self.trained**0.5) if chosen == f"{analyzed}{QAT}" else 0.0


def cheapest_within(choices: Choices, prices: Prices, errors: Errors, limit: float, fixed: Params) -> Params:
    """Parameters of the least predicted cost whose predicted error is at most `limit`; `fixed` has those not decided.

    Where nothing is within the limit, those of the least error.
    """
    charges = errors.charges({**fixed, **{unit.name: errors.worst(unit) for unit in choices.units}})
    allowed = limit
    found: Params | None = None
    for _ in range(ROUNDS):
        solved = _solved(choices, prices, errors, charges, allowed, fixed)
        if solved is None:
            break
        error = errors.error(solved)
        if error <= limit:
            found = solved
            if error >= CLOSE * limit or allowed > 1e3 * limit or not np.isfinite(limit):
                break
            allowed *= min(2.0, limit / max(error, SMALLEST_CHARGE))
        else:
            if found is not None:
                break
            allowed *= 0.9 * limit / error
    if found is not None:
        return found
    rest = min((kind.value for kind in choices.rest), key=prices.rest)
    return {**fixed, **{unit.name: _safest(unit, charges, errors) for unit in choices.units}, REST: rest}


def _safest(unit: Unit, charges: Mapping[tuple[str, str], float], errors: Errors) -> str:
    return min(map(str, unit.schemes), key=lambda scheme: errors.charge(charges, unit.name, scheme))


@dataclass
class _Program:
    """Variables and constraints of an integer linear program, gathered one by one."""

    costs: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[dict[int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, cost: float, integral: bool) -> int:
        self.costs.append(cost)
        self.integral.append(int(integral))
        return len(self.costs) - 1

    def constrain(self, row: dict[int, float], low: float, high: float) -> None:
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def solve(self) -> np.ndarray | None:
        """Values of all variables; None where there is no solution."""
        from scipy.optimize import (
            Bounds,
            LinearConstraint,
            milp,
        )  # heavy, and not wanted before the layers are analyzed
        from scipy.sparse import csr_array

        entries = [(value, number, column) for number, row in enumerate(self.rows) for column, value in row.items()]
        values, numbers, columns = zip(*entries, strict=True)
        matrix = csr_array((values, (numbers, columns)), shape=(len(self.rows), len(self.costs)))
        found = milp(
            self.costs,
            integrality=self.integral,
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, self.low, self.high),
            options={"time_limit": SECONDS, "mip_rel_gap": 1e-3},
        )
        return None if found.x is None else np.asarray(found.x)


def _solved(
    choices: Choices,
    prices: Prices,
    errors: Errors,
    charges: Mapping[tuple[str, str], float],
    allowed: float,
    fixed: Params,
) -> Params | None:
    program = _Program()
    chosen: dict[tuple[str, str], int] = {}
    kinds: Kinds = {}
    tie = 1e-4 / len(choices.units)  # of two that cost the same, the one that needs no training
    for unit in choices.units:
        for scheme in map(str, unit.schemes):
            kind = kind_of(scheme)
            number = program.variable(prices.unit(unit, kind) + tie * scheme.endswith(QAT), integral=True)
            chosen[unit.name, scheme] = number
            kinds.setdefault(unit.name, {}).setdefault(kind, []).append(number)
        program.constrain({chosen[unit.name, str(scheme)]: 1.0 for scheme in unit.schemes}, 1, 1)
    rest = {kind.value: program.variable(prices.rest(kind.value), integral=True) for kind in choices.rest}
    program.constrain(dict.fromkeys(rest.values(), 1.0), 1, 1)
    for (writer, reader), share in prices.crossings.items():
        _cross(program, kinds[writer], kinds[reader], share, prices)
    if np.isfinite(allowed):
        row = {number: errors.charge(charges, *key) for key, number in chosen.items()}
        unit_of_measure = max(*row.values(), allowed, SMALLEST_CHARGE)  # HiGHS works with absolute tolerances
        program.constrain({n: v / unit_of_measure for n, v in row.items() if v > 0}, -np.inf, allowed / unit_of_measure)
    values = program.solve()
    if values is None:
        return None
    taken = {unit: scheme for (unit, scheme), number in chosen.items() if values[number] > 0.5}
    return {**fixed, **taken, REST: max(rest, key=lambda kind: values[rest[kind]])}


def _cross(
    program: _Program,
    written: Mapping[str, list[int]],
    read: Mapping[str, list[int]],
    share: float,
    prices: Prices,
) -> None:
    """One variable a pair of kinds, whose sums are the writer's and the reader's choice."""
    pairs = {
        (a, b): program.variable(share * prices.border(a, b) if a != b else 0.0, integral=False)
        for a in written
        for b in read
    }
    for a in written:
        row = {pairs[a, b]: 1.0 for b in read} | dict.fromkeys(written[a], -1.0)
        program.constrain(row, 0, 0)
    for b in read:
        row = {pairs[a, b]: 1.0 for a in written} | dict.fromkeys(read[b], -1.0)
        program.constrain(row, 0, 0)
