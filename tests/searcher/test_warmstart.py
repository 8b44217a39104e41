"""The warm start: uniform configurations, then ladders down the sensitivity ranking; each once, in order."""

from __future__ import annotations

import pytest

from mixq.searcher.choices import Params
from mixq.searcher.space import SearchSpace
from mixq.searcher.warmstart import analyzed_starts, uniform_starts
from tests.searcher.toy import Toy, choices_of, space

# The most sensitive first: layer3, layer1, layer0, layer4, layer2.
TOY = Toy(work=(1.0,) * 5, errors=(3e-3, 4e-3, 1e-3, 5e-3, 2e-3))
TRAINING = {"steps": [5, 9], "learning_rate": [1e-5, 1e-4]}


def starts(wanted: SearchSpace, toy: Toy = TOY, *, recipes_first: bool = True) -> list[tuple[str, Params]]:
    choices = choices_of(toy, wanted)
    later = analyzed_starts(choices, toy.sensitivity, recipes_first=recipes_first)
    return [*uniform_starts(choices), *later]


def letters(wanted: SearchSpace, params: Params, toy: Toy = TOY) -> str:
    """One a layer: F fp32, H fp16, B bf16, I int8, T trained int8."""
    names = {"fp32": "F", "fp16": "H", "bf16": "B", "int8": "I", "int8-qat": "T"}
    config = choices_of(toy, wanted).config(params)
    return "".join(names[str(config.schemes[name])] for name in toy.names)


def listed(wanted: SearchSpace, toy: Toy = TOY) -> list[tuple[str, str]]:
    return [(origin, letters(wanted, params, toy)) for origin, params in starts(wanted, toy)]


def test_uniform_ones_come_first_then_ladders_of_doubling_steps() -> None:
    assert listed(space()) == [
        ("uniform int8", "IIIII"),
        ("uniform fp32", "FFFFF"),
        ("uniform bf16", "BBBBB"),
        ("ladder 1 bf16", "IIIBI"),
        ("ladder 2 bf16", "IBIBI"),
        ("ladder 4 bf16", "BBIBB"),
        ("ladder 1 fp32", "IIIFI"),
        ("ladder 2 fp32", "IFIFI"),
        ("ladder 4 fp32", "FFIFF"),
    ]


def test_training_comes_last() -> None:
    wanted = space(precisions=["fp32", "int8"], stages=["ptq", "qat"], training=TRAINING)
    assert [layers for _, layers in listed(wanted)] == [
        *("IIIII", "FFFFF"),
        *("IIIFI", "IFIFI", "FFIFF"),
        *("TTTTT", "TTTTT", "IIITI", "ITITI", "TTITT"),
    ]
    trainings = [(params["qat.steps"], params["qat.learning_rate"]) for _, params in starts(wanted)]
    assert trainings == [*[("5", "1e-05")] * 6, ("9", "1e-05"), *[("5", "1e-05")] * 3]


def test_a_sampler_that_plans_gets_recipes_and_one_training_only() -> None:
    recipes = {name: [{"name": "calibrate", "params": {"activations": name}}] for name in ("mse", "minmax")}
    wanted = space(precisions=["fp32", "int8"], stages=["ptq", "qat"], training=TRAINING, recipes=recipes)
    found = analyzed_starts(choices_of(TOY, wanted), TOY.sensitivity, recipes_first=True, planned=True)
    assert [origin for origin, _ in found] == ["uniform int8, recipe minmax", "uniform int8-qat, 5 steps"]


def test_a_space_that_only_trains_spares_the_sensitive_layers_too() -> None:
    wanted = space(precisions=["fp32", "int8"], stages=["qat"], training=TRAINING)
    assert [layers for _, layers in listed(wanted)] == ["TTTTT", "FFFFF", "TTTFT", "TFTFT", "FFTFF", "TTTTT"]


def test_a_space_without_int8_spares_them_from_its_fastest_type() -> None:
    assert [layers for _, layers in listed(space(precisions=["fp32", "bf16"]))] == [
        *("BBBBB", "FFFFF"),
        *("BBBFB", "BFBFB", "FFBFF"),
    ]


def test_the_rest_is_every_type_for_uniform_ones_and_the_matching_one_for_ladders() -> None:
    wanted = space(rest=["fp32", "bf16"])
    found = [(letters(wanted, params), params["rest"]) for _, params in starts(wanted)]
    assert found[:6] == [
        ("IIIII", "fp32"),
        ("FFFFF", "fp32"),
        ("IIIII", "bf16"),
        ("BBBBB", "fp32"),
        ("BBBBB", "bf16"),
        ("FFFFF", "bf16"),
    ]
    assert [(layers, rest) for layers, rest in found[6:] if "B" in layers] == [
        ("IIIBI", "bf16"),
        ("IBIBI", "bf16"),
        ("BBIBB", "bf16"),
    ]
    assert {rest for layers, rest in found[6:] if "F" in layers} == {"fp32"}


def test_every_recipe_is_tried_on_int8() -> None:
    recipes = {name: [{"name": "calibrate", "params": {"activations": name}}] for name in ("mse", "minmax", "entropy")}
    found = [
        (origin, params["recipe"]) for origin, params in starts(space(precisions=["fp32", "int8"], recipes=recipes))
    ]
    assert found[:4] == [
        ("uniform int8", "mse"),
        ("uniform fp32", "mse"),
        ("uniform int8, recipe minmax", "minmax"),
        ("uniform int8, recipe entropy", "entropy"),
    ]
    assert {recipe for _, recipe in found[4:]} == {"mse"}
    wanted = space(precisions=["fp32", "int8"], recipes=recipes)
    later = [origin for origin, _ in starts(wanted, recipes_first=False)]
    assert later == [*(origin for origin, _ in found[:2]), *(o for o, _ in found[4:]), *(o for o, _ in found[2:4])]


def test_layers_that_lack_a_scheme_take_the_nearest() -> None:
    """layer0 is never INT8; layer1 is never trained, so it is INT8 where the others are trained."""
    wanted = space(
        precisions=["fp32", "int8"],
        stages=["ptq", "qat"],
        training=TRAINING,
        overrides=[{"layers": "layer0", "precisions": ["bf16", "fp32"]}, {"layers": "layer1", "stages": ["ptq"]}],
    )
    found = dict(listed(wanted))
    assert found["uniform fp32"] == "FFFFF"
    assert found["uniform int8"] == "BIIII"
    assert found["uniform int8-qat, 5 steps"] == "BITTT"
    assert list(found.values())[3:6] == ["BIIFI", "BFIFI", "BFIFF"]


def test_layers_of_a_group_climb_together() -> None:
    """layer2 and layer4 add up to 3e-3, which puts them behind layer3 and layer1; with twice their errors, before."""
    wanted = space(precisions=["fp32", "int8"], groups=["layer[24]"])
    assert [layers for _, layers in listed(wanted)] == ["IIIII", "FFFFF", "IIIFI", "IFIFI"]
    heavier = Toy(work=TOY.work, errors=(3e-3, 4e-3, 2e-3, 5e-3, 4e-3))
    assert [layers for _, layers in listed(wanted, heavier)] == ["IIIII", "FFFFF", "IIFIF", "IIFFF"]


@pytest.mark.parametrize("precisions", [["fp32"], ["int8"], ["fp32", "int8"], ["fp32", "fp16", "bf16", "int8"]])
@pytest.mark.parametrize("layers", [1, 2, 9])
def test_no_configuration_comes_twice(precisions: list[str], layers: int) -> None:
    toy, wanted = Toy.random(layers), space(precisions=precisions, rest=["fp32", "bf16"])
    found = [choices_of(toy, wanted).config(params).id for _, params in starts(wanted, toy)]
    assert len(found) == len(set(found)) >= len(precisions)


def test_every_parameter_is_given_so_that_no_sampler_adds_to_it() -> None:
    wanted = space(stages=["ptq", "qat"], training=TRAINING, rest=["fp32", "bf16"])
    choices = choices_of(TOY, wanted)
    for _, params in starts(wanted):
        assert params.keys() == choices.categories().keys()
        assert all(value in choices.categories()[name] for name, value in params.items())
