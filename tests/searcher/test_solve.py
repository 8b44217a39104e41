"""The integer program against going through all assignments."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.deltas import Interactions
from mixq.searcher.choices import Choices, Params
from mixq.searcher.cost import kind_of
from mixq.searcher.solve import Errors, Prices, cheapest_within
from tests.searcher.toy import Toy, choices_of, space

FIXED = {"recipe": "default"}


def prices_of(choices: Choices, rng: np.random.Generator) -> Prices:
    """A chain of units, with borders."""
    times = {(u.name, k): rng.uniform(0.1, 1) for u in choices.units for k in ("fp32", "bf16", "int8")}
    rest = {"fp32": rng.uniform(0, 1), "bf16": rng.uniform(0, 1)}
    border = {(a, b): rng.uniform(0, 1) for a in ("fp32", "bf16", "int8") for b in ("fp32", "bf16", "int8")}
    names = [unit.name for unit in choices.units]
    crossings = {pair: rng.uniform(0, 1) for pair in pairwise(names)}
    return Prices(lambda u, k: times[u.name, k], lambda k: rest[k], lambda a, b: border[a, b], crossings)


def cost(choices: Choices, prices: Prices, params: Params) -> float:
    kinds = {unit.name: kind_of(params[unit.name]) for unit in choices.units}
    crossed = sum(
        share * prices.border(kinds[a], kinds[b]) for (a, b), share in prices.crossings.items() if kinds[a] != kinds[b]
    )
    return sum(prices.unit(u, kinds[u.name]) for u in choices.units) + prices.rest(params["rest"]) + crossed


def everything(choices: Choices) -> list[Params]:
    names = [unit.name for unit in choices.units]
    schemes = [[str(scheme) for scheme in unit.schemes] for unit in choices.units]
    return [
        {**FIXED, **dict(zip(names, chosen, strict=True)), "rest": rest.value}
        for chosen in product(*schemes)
        for rest in choices.rest
    ]


def choices_and_errors(seed: int, coupled: bool) -> tuple[Choices, Errors]:
    toy = Toy.random(5, seed)
    choices = choices_of(toy, space(rest=["fp32", "bf16"]))
    keys = tuple((name, "int8") for name in toy.names)
    deltas = np.random.default_rng(seed).normal(size=(5, 40)) + (1.0 if coupled else 0.0)
    matrix = deltas @ deltas.T if coupled else np.diag((deltas**2).sum(1))
    return choices, Errors(choices, Interactions(keys, tuple(map(tuple, matrix.tolist()))))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1.2))
def test_the_optimum_where_errors_add_up(seed: int, share: float) -> None:
    choices, errors = choices_and_errors(seed, coupled=False)
    prices = prices_of(choices, np.random.default_rng(seed))
    limit = share * errors.error({**FIXED, **{u.name: "int8" for u in choices.units}, "rest": "fp32"})
    found = cheapest_within(choices, prices, errors, limit, FIXED)
    able = [params for params in everything(choices) if errors.error(params) <= limit * (1 + 1e-9)]
    assert errors.error(found) <= limit * (1 + 1e-9)
    best = min(cost(choices, prices, params) for params in able)
    assert cost(choices, prices, found) <= best * 1.002 + 1e-3  # HiGHS' gap, and the tie-breaker's


@pytest.mark.parametrize("seed", range(10))
def test_near_the_optimum_where_errors_interact(seed: int) -> None:
    choices, errors = choices_and_errors(seed, coupled=True)
    prices = prices_of(choices, np.random.default_rng(seed))
    limit = 0.4 * errors.error({**FIXED, **{u.name: "int8" for u in choices.units}, "rest": "fp32"})
    found = cheapest_within(choices, prices, errors, limit, FIXED)
    assert errors.error(found) <= limit
    costs = sorted(cost(choices, prices, p) for p in everything(choices) if errors.error(p) <= limit)
    assert cost(choices, prices, found) <= 1.15 * costs[0]


def test_without_a_limit_the_cheapest() -> None:
    choices, errors = choices_and_errors(0, coupled=True)
    prices = prices_of(choices, np.random.default_rng(0))
    found = cheapest_within(choices, prices, errors, np.inf, FIXED)
    assert cost(choices, prices, found) == pytest.approx(min(cost(choices, prices, p) for p in everything(choices)))


def test_charges_are_the_parts_of_the_error() -> None:
    choices, errors = choices_and_errors(3, coupled=True)
    params = {**FIXED, **{u.name: "int8" for u in choices.units}, "rest": "fp32"}
    assert sum(errors.charges(params).values()) == pytest.approx(errors.error(params), rel=1e-6)


def test_training_halves_the_error_of_a_layer_alone() -> None:
    toy = Toy.random(2)
    choices = choices_of(toy, space(stages=["ptq", "qat"], training={"steps": [1], "learning_rate": [1e-4]}))
    errors = Errors(choices, Interactions.diagonal({(name, "int8"): 0.5 for name in toy.names}))
    assert errors.error({"layer0": "int8-qat", "layer1": "fp32"}) == pytest.approx(0.25)
    assert errors.error({"layer0": "int8", "layer1": "fp32"}) == pytest.approx(0.5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.data())
def test_parts_of_layers_sum_to_the_error(seed: int, coupled: bool, data: st.DataObject) -> None:
    choices, errors = choices_and_errors(seed, coupled)
    factors = data.draw(st.lists(st.floats(0.01, 100), min_size=5, max_size=5))
    scaled = errors.times(np.array(factors))
    params = data.draw(st.sampled_from(everything(choices)))
    assert scaled.parts(params).sum() == pytest.approx(scaled.error(params), rel=1e-9, abs=1e-12)


def test_factors_are_those_of_the_errors_of_single_layers() -> None:
    choices, errors = choices_and_errors(3, coupled=True)
    scaled = errors.times(np.array([1, 2, 3, 4, 5])).times(np.array([5, 1, 1, 1, 1]))
    alone = [{**FIXED, **{u.name: "int8" if u is unit else "fp32" for u in choices.units}} for unit in choices.units]
    ratios = [scaled.error({**params, "rest": "fp32"}) / errors.error({**params, "rest": "fp32"}) for params in alone]
    assert ratios == pytest.approx([5, 2, 3, 4, 5])
