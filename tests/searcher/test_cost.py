"""The cost model: learns terms that are planted, and starts from the profiles."""

from __future__ import annotations

import numpy as np
import pytest

from mixq.graph.borders import find_borders
from mixq.searcher.choices import Choices, Params, make_choices
from mixq.searcher.cost import CostModel, Observation, kind_of, take_profiles
from tests.digits_helpers import digits
from tests.helpers import Net, images, residual
from tests.searcher.toy import MODEL, AnyRuntime, space

KINDS = ("fp32", "bf16", "int8")
SPEED = {"fp32": 1.0, "bf16": 0.6, "int8": 0.3}
RATE = {("int8", "fp32"): 0.2, ("fp32", "int8"): 0.1, ("bf16", "int8"): 0.15}


def choices() -> Choices:
    return make_choices(space(rest=["fp32", "bf16"]), residual(), AnyRuntime(), MODEL)


def model(truth: bool = False) -> CostModel:
    """Its profiles are off by up to a quarter unless they are to be the truth."""
    rng = np.random.default_rng(1)
    times = {layer.name: 10.0 + layer.macs / 1e3 for layer in residual().layers}
    profiles = {
        kind: {name: SPEED[kind] * time * (1 if truth else rng.uniform(0.75, 1.25)) for name, time in times.items()}
        for kind in KINDS
    }
    return CostModel(choices(), residual(), profiles)


def random_params(rng: np.random.Generator) -> Params:
    return {**{name: str(rng.choice(values)) for name, values in choices().categories().items()}}


def planted(params: Params) -> float:
    exact = model(truth=True)
    crossings = sum(
        RATE.get((kind_of(params[a]), kind_of(params[b])), 0.0) * share for (a, b), share in exact.crossings.items()
    )
    return exact.predict(params) + crossings


def median_error(found: CostModel, rng: np.random.Generator) -> float:
    tests = [random_params(rng) for _ in range(100)]
    return float(np.median([abs(found.predict(params) / planted(params) - 1) for params in tests]))


def observed(found: CostModel, count: int, rng: np.random.Generator) -> list[Observation]:
    return [found.observe(params, planted(params), 0.005) for params in (random_params(rng) for _ in range(count))]


def test_borders_are_between_layers_through_what_is_no_layer() -> None:
    found = {(border.writer, border.reader): border.elements for border in find_borders(residual())}
    assert found.keys() == {
        ("stem", "left"),
        ("left", "right"),
        ("stem", "head"),
        ("right", "head"),
    }
    assert found["stem", "left"] == 8 * 4 * 4
    assert found["right", "head"] == 8


def test_a_tensor_that_two_layers_wrote_has_two_borders() -> None:
    net = Net(3, 8, 8)
    both = net.op("Concat", net.conv("x", 4, "one"), net.conv("x", 4, "two"), axis=1)
    graph = net.graph(net.conv(both, 4, "last"), example=images(2), ranks=[4])
    assert {(border.writer, border.reader) for border in find_borders(graph)} == {("one", "last"), ("two", "last")}


def test_without_trials_the_profiles_speak() -> None:
    found = model(truth=True)
    uniform = {unit.name: "fp32" for unit in choices().units} | {"rest": "fp32", "recipe": "default"}
    assert found.predict(uniform) == pytest.approx(1.0)
    assert found.predict({**uniform, **{unit.name: "int8" for unit in choices().units}}) == pytest.approx(
        0.15 + 0.85 * SPEED["int8"]
    )


def test_trials_teach_what_the_profiles_did_not_know() -> None:
    rng = np.random.default_rng(0)
    found = model()
    before = median_error(found, np.random.default_rng(5))
    found.fit(observed(found, 30, rng))
    after = median_error(found, np.random.default_rng(5))
    assert after < 0.02
    assert after < before / 3


def test_draws_spread_around_the_fit_and_less_with_more_trials() -> None:
    rng = np.random.default_rng(0)
    found, params = model(), random_params(np.random.default_rng(9))

    def spread(count: int) -> float:
        seen = observed(found, count, np.random.default_rng(0))
        drawn = []
        for _ in range(200):
            found.fit(seen, rng)
            drawn.append(found.predict(params))
        found.fit(seen)
        assert np.mean(drawn) == pytest.approx(found.predict(params), abs=4 * np.std(drawn) / 200**0.5)
        return float(np.std(drawn))

    assert spread(40) < 0.5 * spread(2)


@pytest.mark.slow
def test_profiles_are_taken_of_every_precision() -> None:
    evaluator = digits("openvino")
    found = take_profiles(evaluator, make_choices(space(), evaluator.graph, evaluator.runtime, evaluator.fingerprint))
    assert found.keys() >= {"fp32", "int8"}
    for times in found.values():
        assert list(times) == evaluator.graph.layer_names
        assert sum(times.values()) > 0
