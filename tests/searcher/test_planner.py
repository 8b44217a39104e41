"""Planner: what training leaves of a layer's error is learned from the trials that trained layers."""

from __future__ import annotations

import itertools

import numpy as np
import optuna
import pytest

from mixq.config import Stage
from mixq.searcher.choices import Params
from mixq.searcher.guided import Guide
from mixq.searcher.planner import FIRST_SHARES
from mixq.searcher.samplers import distributions
from mixq.searcher.study import EVALUATION, SECONDS
from tests.searcher.toy import Toy, choices_of, space

TOY = Toy(work=(1.0,) * 5, errors=(3e-3, 4e-3, 1e-3, 5e-3, 2e-3))
WANTED = space(precisions=["fp32", "int8"], stages=["ptq", "qat"], training={"steps": [5, 20], "learning_rate": [0.1]})
CHOICES = choices_of(TOY, WANTED)


def params(schemes: dict[str, str], steps: str = "5") -> Params:
    rest = {"rest": "fp32", "recipe": "default", "qat.steps": steps, "qat.learning_rate": "0.1"}
    return {**dict.fromkeys(TOY.names, "int8"), **schemes, **rest}


def trial(number: int, given: Params, error: float, passed: bool, seconds: float = 0.0) -> optuna.trial.FrozenTrial:
    found = {"speedup": {"median": 2.0, "low": 1.9, "high": 2.1}, "kl": error, "output_mse": error}
    told = {EVALUATION: found, SECONDS: seconds}
    frozen = optuna.trial.create_trial(
        params=dict(given), distributions=distributions(CHOICES), value=0.5, user_attrs=told
    )
    frozen.number = number
    frozen.system_attrs["constraints:drop"] = -1.0 if passed else 1.0
    return frozen


def guide() -> Guide:
    return Guide(CHOICES, TOY.graph, TOY.sensitivity, "latency")


@pytest.mark.parametrize("left", [0.1, 0.8])
def test_what_training_leaves_is_learned(left: float) -> None:
    planner = guide().planner
    whole = dict.fromkeys(TOY.names, f"int8-{Stage.QAT}")
    trials = [
        trial(0, params({}), sum(TOY.errors), False),
        trial(1, params(whole), left * sum(TOY.errors), True),
        trial(2, params({"layer3": "int8-qat"}), sum(TOY.errors) - (1 - left) * 5e-3, False),
    ]
    planner.propose(trials, np.random.default_rng(0))
    assert planner.errors.trained == pytest.approx(left, rel=0.3)


def test_without_such_trials_half_is_supposed_to_be_left() -> None:
    planner = guide().planner
    planner.propose([trial(0, params({}), sum(TOY.errors), False)], np.random.default_rng(0))
    assert planner.errors.trained == 0.5


def test_a_longer_training_that_leaves_less_is_proposed() -> None:
    planner = guide().planner
    whole = dict.fromkeys(TOY.names, "int8-qat")
    trials = [
        trial(0, params({}), sum(TOY.errors), False),
        trial(1, params(whole), 0.8 * sum(TOY.errors), False),
        trial(2, params(whole, "20"), 0.2 * sum(TOY.errors), True),
    ]
    found = planner.propose(trials, np.random.default_rng(0))
    assert found["qat.steps"] == "20"


def test_a_longer_training_is_proposed_where_none_passed() -> None:
    planner = guide().planner
    trials = [
        trial(0, params({}), sum(TOY.errors), False),
        trial(1, params(dict.fromkeys(TOY.names, "int8-qat")), 0.8 * sum(TOY.errors), False),
    ]
    assert planner.propose(trials, np.random.default_rng(0))["qat.steps"] == "20"
    passed = trial(2, params({"layer3": "int8-qat"}), 0.1 * sum(TOY.errors), True)
    assert planner.propose([*trials, passed], np.random.default_rng(0))["qat.steps"] == "5"


@pytest.mark.parametrize(("training_s", "trains"), [(9.0, True), (11.0, False)])
def test_training_takes_no_more_time_than_all_else(training_s: float, trains: bool) -> None:
    trials = [
        trial(0, params({}), sum(TOY.errors), False, 10.0),
        trial(1, params(dict.fromkeys(TOY.names, "int8-qat")), 0.1 * sum(TOY.errors), True, training_s),
    ]
    found = guide().planner.propose(trials, np.random.default_rng(0))
    assert ("int8-qat" in found.values()) is trains
    assert trains or "fp32" in found.values()


def test_the_first_proposals_are_the_fastest_within_shares_of_the_error_that_failed() -> None:
    """Untrained ones, by trying all 32: every layer saves as much, so that the most layers are in INT8."""
    failed, rng = trial(0, params({}), 2 * sum(TOY.errors), False), np.random.default_rng(0)
    proposals = guide().planner.first([failed], rng)
    assert len(proposals) == len(FIRST_SHARES)
    for proposal, share in zip(proposals, FIRST_SHARES, strict=True):
        within = [
            sum(chosen)
            for chosen in itertools.product((0, 1), repeat=5)
            if np.dot(chosen, TOY.errors) <= share * sum(TOY.errors)
        ]
        schemes = [proposal[name] for name in TOY.names]
        assert set(schemes) <= {"fp32", "int8"}
        assert schemes.count("int8") == max(within)
        assert sum(e for e, s in zip(TOY.errors, schemes, strict=True) if s == "int8") <= share * sum(TOY.errors)


def test_nothing_is_proposed_first_where_nothing_failed() -> None:
    assert guide().planner.first([trial(0, params({}), sum(TOY.errors), True)], np.random.default_rng(0)) == []


def test_units_that_only_train_keep_their_choice() -> None:
    for precisions in (["int8"], ["fp32", "int8"]):
        wanted = space(precisions=precisions, stages=["qat"], training={"steps": [5], "learning_rate": [0.1]})
        choices = choices_of(TOY, wanted)
        assert choices.untrained == choices
    assert {str(s) for unit in CHOICES.untrained.units for s in unit.schemes} == {"fp32", "int8"}


def test_what_trials_tell_of_a_layer_counts() -> None:
    """Of 20 proposals, those with layer2 in INT8, by what it is measured to be; the analysis says 1e-3, the least."""
    fp32, found = dict.fromkeys(TOY.names, "fp32"), {}
    for true in (1e-3, 6e-3):
        errors = dict(zip(TOY.names, (3e-3, 4e-3, true, 5e-3, 2e-3), strict=True))
        trials = []
        for number, chosen in enumerate(itertools.combinations(TOY.names, 2)):
            error = sum(errors[name] for name in chosen)
            trials.append(trial(number, params(fp32 | dict.fromkeys(chosen, "int8")), error, error <= 5e-3))
        proposals = [guide().planner.propose(trials, np.random.default_rng(seed)) for seed in range(20)]
        found[true] = sum(proposal["layer2"] == "int8" for proposal in proposals)
    assert found[1e-3] >= 6, found
    assert found[6e-3] <= 2, found


def test_proposals_differ_while_the_errors_are_uncertain() -> None:
    trials = [trial(0, params({}), sum(TOY.errors), False), trial(1, params(dict.fromkeys(TOY.names, "fp32")), 0, True)]
    planner = guide().planner
    found = {tuple(planner.propose(trials, np.random.default_rng(seed)).items()) for seed in range(20)}
    assert len(found) > 3
