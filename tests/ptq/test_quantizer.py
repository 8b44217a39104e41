"""Quantizer and recipes: what they begin with is done once; a recipe that is none is refused with the rule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mixq.config import RecipeStep
from mixq.errors import InputError
from mixq.graph import serialize
from mixq.ptq import DEFAULT_RECIPE, Material, Prepared, Quantizer, check_recipe
from mixq.ptq.networks import int8_model
from mixq.ptq.recipe import STEPS
from mixq.runtimes import get_runtime
from tests.helpers import images, ort_run, residual

MATERIAL = Material([images(16, name="image")], ort_run, get_runtime("onnxruntime").placement)


def steps(*names: str) -> tuple[RecipeStep, ...]:
    return tuple(RecipeStep(name=name) for name in names)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the steps that are run, as they are run."""
    log: list[str] = []
    for name, cls in STEPS.items():

        def apply(self: object, prepared: Prepared, material: Material, name: str = name) -> Prepared:
            log.append(name)
            return prepared

        monkeypatch.setattr(cls, "apply", apply)
    return log


def test_what_recipes_begin_with_is_done_once(done: list[str]) -> None:
    quantizer = Quantizer(residual(), MATERIAL)
    assert done == []
    quantizer.prepared(steps("equalize", "calibrate", "adaround"))
    assert done == ["equalize", "calibrate", "adaround"]
    quantizer.prepared(steps("equalize", "calibrate", "bias_correction"))
    assert done[3:] == ["bias_correction"]
    quantizer.prepared(steps("equalize", "calibrate"))
    quantizer.prepared(steps("equalize", "calibrate", "adaround"))
    assert done[4:] == []
    quantizer.prepared(steps("calibrate", "adaround"))
    assert done[4:] == ["calibrate", "adaround"]


def test_other_parameters_are_other_steps(done: list[str]) -> None:
    quantizer = Quantizer(residual(), MATERIAL)
    for activations in ("minmax", "mse", "minmax"):
        quantizer.prepared((RecipeStep(name="calibrate", params={"activations": activations}),))
    assert done == ["calibrate", "calibrate"]


def test_the_default_recipe_stands_for_none(done: list[str]) -> None:
    quantizer = Quantizer(residual(), MATERIAL)
    assert quantizer.prepared() is quantizer.prepared(DEFAULT_RECIPE)
    assert done == [step.name for step in DEFAULT_RECIPE]


def test_steps_are_made_with_their_parameters() -> None:
    recipe = (
        RecipeStep(name="calibrate", params={"weights": "minmax"}),
        RecipeStep(name="adaround", params={"sweeps": 3}),
    )
    calibrate, adaround = check_recipe(recipe)
    assert calibrate == STEPS["calibrate"](activations="mse", weights="minmax")  # type: ignore[call-arg]
    assert adaround == STEPS["adaround"](sweeps=3)  # type: ignore[call-arg]
    check_recipe(DEFAULT_RECIPE)


ORDER = "equalize → calibrate → adaround → bias_correction"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("calibrate", "gptq"), "recipe step 'gptq' is unknown; known: equalize, calibrate, adaround, bias_correction"),
        (("adaround", "calibrate"), f"in the order {ORDER}; got ['adaround', 'calibrate']"),
        (("calibrate", "equalize"), f"in the order {ORDER}; got ['calibrate', 'equalize']"),
        (("equalize", "adaround"), "a recipe has calibrate, each step once"),
        (("calibrate", "adaround", "adaround"), "each step once"),
    ],
)
def test_a_recipe_that_is_none_is_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as refused:
        Quantizer(residual(), MATERIAL).prepared(steps(*names))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        (
            "calibrate",
            {"observer": "mse"},
            "recipe step 'calibrate' has no parameter ['observer']; known: activations, weights",
        ),
        ("bias_correction", {"rounds": 2}, "recipe step 'bias_correction' has no parameter ['rounds']; known: "),
        ("calibrate", {"activations": "ema"}, "recipe step 'calibrate': activations: 'ema' is unknown; known: "),
        ("calibrate", {"weights": "ema"}, "recipe step 'calibrate': weights: 'ema' is unknown; known: minmax, mse"),
        ("adaround", {"sweeps": 0}, "recipe step 'adaround': sweeps must be at least 1"),
        (
            "adaround",
            {"drift": 2.0},
            "recipe step 'adaround': sweeps must be at least 1, drift and shrinkage from 0 to 1",
        ),
        ("adaround", {"sweeps": "many"}, "recipe step 'adaround': "),
    ],
)
def test_parameters_are_refused_with_step_and_rule(
    name: str, params: Mapping[str, str | int | float], message: str
) -> None:
    recipe = {"calibrate": RecipeStep(name="calibrate"), name: RecipeStep(name=name, params=params)}
    with pytest.raises(InputError) as refused:
        check_recipe(tuple(recipe.values()))
    assert message in str(refused.value)


def test_the_graph_stays_as_it_is_and_all_is_the_same_every_time() -> None:
    before = serialize(residual().model)
    recipe = steps(*STEPS)
    first, second = (Quantizer(residual(), MATERIAL).prepared(recipe) for _ in range(2))
    assert serialize(residual().model) == before
    assert serialize(int8_model(first, MATERIAL)) == serialize(int8_model(second, MATERIAL))


@pytest.mark.parametrize("names", [("calibrate",), ("calibrate", "adaround")], ids="+".join)
def test_a_step_run_again_has_no_effect(names: tuple[str, ...]) -> None:
    """equalize and bias_correction have tests of their own for that: they come to rest, but not at once."""
    found = Quantizer(residual(), MATERIAL).prepared(steps(*names))
    again = check_recipe(steps(*names))[-1].apply(found, MATERIAL)
    assert again.ranges == found.ranges
    for name, magnitude in found.magnitudes.items():
        np.testing.assert_array_equal(again.magnitudes[name], magnitude)
    assert again.values.keys() == found.values.keys()
    for key, value in found.values.items():
        np.testing.assert_array_equal(again.values[key], value)
