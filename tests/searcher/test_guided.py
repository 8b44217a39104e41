"""Guide: predicted costs and errors, and the weights of moves, in closed form."""

from __future__ import annotations

import math

import pytest

from mixq.searcher.choices import Unit
from mixq.searcher.guided import Guide
from mixq.searcher.space import Objective, SearchSpace
from tests.searcher.toy import Toy, choices_of, space

TOY = Toy(work=(1000.0, 200.0, 40.0), errors=(0.04, 0.01, 0.09))
ALL = ("fp32", "fp16", "bf16", "int8")


def guide_of(wanted: SearchSpace, objective: Objective = "latency") -> tuple[Guide, dict[str, Unit]]:
    choices = choices_of(TOY, wanted)
    units = {unit.name: unit for unit in choices.units}
    return Guide(choices, TOY.graph, TOY.sensitivity, objective), units


def weights(wanted: SearchSpace, params: dict[str, str], faster: bool) -> dict[tuple[str, str], float]:
    guide, _ = guide_of(wanted)
    return {(move.name, move.value): move.weight for move in guide.moves(params, faster)}


@pytest.mark.parametrize(("scheme", "cost"), [("fp32", 1000), ("fp16", 1000), ("bf16", 500), ("int8", 250)])
def test_work_is_what_the_instructions_bear(scheme: str, cost: float) -> None:
    guide, units = guide_of(space(precisions=ALL))
    assert guide.cost(units["layer0"], scheme) == cost


@pytest.mark.parametrize(("scheme", "cost"), [("fp32", 4000), ("fp16", 2000), ("bf16", 2000), ("int8", 1000)])
def test_size_is_the_bytes_of_the_weights(scheme: str, cost: float) -> None:
    guide, units = guide_of(space(precisions=ALL, objectives=["size"]), "size")
    assert guide.cost(units["layer0"], scheme) == cost


def test_errors_are_those_of_the_analysis() -> None:
    guide, units = guide_of(space(precisions=ALL))
    assert [guide.error(units["layer2"], scheme) for scheme in ALL] == [0, 0, 0, 0.09]


def test_errors_and_costs_of_a_group_add_up() -> None:
    guide, units = guide_of(space(groups=["layer[01]"]))
    assert guide.error(units["group layer[01]"], "int8") == pytest.approx(0.05)
    assert guide.cost(units["group layer[01]"], "int8") == 300


@pytest.mark.parametrize("stages", [["ptq", "qat"], ["qat"]])
def test_training_halves_the_error_of_the_same_scheme(stages: list[str]) -> None:
    """Also where the space has the trained scheme alone: what was analyzed is the untrained one."""
    guide, units = guide_of(space(stages=stages, training={"steps": [1]}))
    assert guide.error(units["layer2"], "int8-qat") == pytest.approx(0.045)


def test_moves_to_less_work_weigh_the_saving_over_the_root_of_the_error() -> None:
    found = weights(space(precisions=["fp32", "int8"]), dict.fromkeys(TOY.names, "fp32"), faster=True)
    assert found == pytest.approx(
        {
            ("layer0", "int8"): 750 / 0.2,
            ("layer1", "int8"): 150 / 0.1,
            ("layer2", "int8"): 30 / 0.3,
        }
    )


def test_moves_to_less_error_weigh_what_is_removed_over_the_root_of_the_work() -> None:
    params = {"layer0": "int8", "layer1": "fp32", "layer2": "int8"}
    found = weights(space(precisions=["fp32", "int8"]), params, faster=False)
    assert found == pytest.approx(
        {
            ("layer0", "fp32"): 0.04 / math.sqrt(750),
            ("layer2", "fp32"): 0.09 / math.sqrt(30),
        }
    )


def test_a_float_type_that_is_faster_is_a_move_out_of_int8_too() -> None:
    found = weights(space(), dict.fromkeys(TOY.names, "int8"), faster=False)
    assert found["layer2", "bf16"] > found["layer2", "fp32"]
    assert {value for _, value in found} == {"bf16", "fp32"}


@pytest.mark.parametrize(("scheme", "faster"), [("int8", True), ("fp32", False)])
def test_where_nothing_can_be_gained_there_is_no_move(scheme: str, faster: bool) -> None:
    assert weights(space(), dict.fromkeys(TOY.names, scheme), faster) == {}


def test_an_error_of_nothing_still_has_a_finite_weight() -> None:
    found = weights(space(precisions=["fp32", "bf16"]), dict.fromkeys(TOY.names, "fp32"), faster=True)
    assert all(0 < weight < math.inf for weight in found.values())
    assert found["layer0", "bf16"] == pytest.approx(found["layer1", "bf16"] * 5)


TRAINING = {"steps": [5, 20, 80], "learning_rate": [0.1]}


def trained_moves(params: dict[str, str], faster: bool) -> dict[tuple[str, str], float]:
    wanted = space(precisions=["fp32", "int8"], stages=["ptq", "qat"], training=TRAINING)
    return weights(wanted, {**params, "qat.steps": "5"}, faster)


def test_layers_are_trained_where_too_much_is_lost_the_most_sensitive_first() -> None:
    found = trained_moves(dict.fromkeys(TOY.names, "int8"), faster=False)
    trained = {name: found[name, "int8-qat"] for name in TOY.names}
    assert trained["layer2"] > trained["layer0"] > trained["layer1"]
    # It costs a layer's speed nothing, so it is worth more than to leave INT8.
    assert all(found[name, "int8-qat"] > found[name, "fp32"] for name in ("layer0", "layer1"))


def test_layers_are_trained_no_longer_where_less_is_lost_than_may_be() -> None:
    found = trained_moves(dict.fromkeys(TOY.names, "int8-qat"), faster=True)
    assert {(name, "int8") for name in TOY.names} == set(found)


def test_what_is_trained_and_loses_too_much_may_be_trained_longer() -> None:
    found = trained_moves(dict.fromkeys(TOY.names, "int8-qat"), faster=False)
    assert ("qat.steps", "20") in found
    assert ("qat.steps", "80") not in found
    assert not any(name == "qat.steps" for name, _ in trained_moves(dict.fromkeys(TOY.names, "int8"), faster=False))
