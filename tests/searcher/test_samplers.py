"""Samplers: what every one of the table keeps, and that our own is worth having."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from mixq.searcher.choices import Params
from mixq.searcher.guided import Guide
from mixq.searcher.objective import best_of
from mixq.searcher.run import enqueue
from mixq.searcher.samplers import SAMPLERS, Distinct, Guided, front
from mixq.searcher.space import SamplerName
from mixq.searcher.study import SECONDS, is_feasible
from tests.searcher.toy import Search, Toy, choices_of, config_ids, new_study, space

CHEAP = [name for name in SAMPLERS if name != "gp"]
OBJECTIVES = (["latency"], ["latency", "size"])


def test_the_table_has_what_a_space_may_name() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerName))


@pytest.mark.slow
@pytest.mark.parametrize("objectives", OBJECTIVES, ids=len)
@pytest.mark.parametrize("name", CHEAP)
def test_no_configuration_is_evaluated_twice(name: str, objectives: Sequence[str]) -> None:
    search = Search(Toy.random(5), space(sampler=name, objectives=objectives, rest=["fp32", "bf16"]))
    found = config_ids(search.run(40))
    assert len(found) == len(set(found)) == len(search.evaluator.seen) == 40


@pytest.mark.slow
@pytest.mark.parametrize("objectives", OBJECTIVES, ids=len)
def test_the_gp_does_not_either(objectives: Sequence[str]) -> None:
    """Beyond its ten random trials, in a space that it nearly uses up."""
    search = Search(Toy.random(2), space(sampler="gp", objectives=objectives, rest=["fp32", "bf16"]))
    found = config_ids(search.run(16))
    assert len(found) == len(set(found)) == 16


@pytest.mark.slow
@pytest.mark.parametrize("objectives", OBJECTIVES, ids=len)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_small_space_is_used_up_and_ends_the_search(name: str, objectives: Sequence[str]) -> None:
    search = Search(Toy.random(2), space(sampler=name, objectives=objectives))
    found = config_ids(search.run(1000))
    assert len(found) == len(set(found)) == search.choices.size == 9


def test_parameters_that_change_nothing_make_no_new_configuration() -> None:
    """Without INT8 the recipe says nothing, without QAT the training does not: 2 + 2 · 2 + 2 · 2 · 2 · 3 parameter
    sets stand for fp32 (1), int8 (2 recipes) and int8-qat (2 recipes × 2 step counts)."""
    minmax = [{"name": "calibrate", "params": {"activations": "minmax", "weights": "minmax"}}]
    wanted = space(
        precisions=["fp32", "int8"],
        stages=["ptq", "qat"],
        recipes={"mse": [{"name": "calibrate"}], "minmax": minmax},
        training={"steps": [1, 2], "learning_rate": [1e-5]},
    )
    search = Search(Toy.random(1), wanted)
    assert search.choices.size == 12
    assert len(set(config_ids(search.run(1000)))) == len(search.evaluator.seen) == 1 + 2 + 4


@pytest.mark.parametrize("name", CHEAP)
def test_the_seed_decides(name: str) -> None:
    toy, wanted = Toy.random(8), space(sampler=name)
    first, again, other = (config_ids(Search(toy, wanted, seed=seed).run(25)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def reached(toy: Toy, seed: int, at_random: bool) -> float:
    """The time ÷ FP32's of the best feasible of 60 trials from a cold start; 1 where there is none."""
    study = new_study()
    search = Search(toy, space(constraints={"max_drop": 0.01}), seed, study)
    if at_random:
        study.sampler = Distinct(optuna.samplers.RandomSampler(seed), search.choices, seed)
    best = best_of(search.run(60), "latency")
    return 1.0 if best is None else toy.share(best.config)


@pytest.mark.slow
def test_guided_beats_random_by_far() -> None:
    """24 layers: in every run at least a tenth less time, a sixth on average."""
    ratios = [
        reached(toy, seed, at_random=False) / reached(toy, seed, at_random=True)
        for seed, toy in enumerate(Toy.random(24, seed) for seed in range(4))
    ]
    assert max(ratios) < 0.9
    assert np.mean(ratios) < 5 / 6


def optimum(toy: Toy, limit: float) -> float:
    """The least time ÷ FP32's of all assignments within the limit, by going through them."""
    grid = np.indices((3,) * len(toy.work)).reshape(len(toy.work), -1)
    errors, shares = np.array([0.0, 0.05, 1.0])[grid], np.array([1.0, 0.5, 0.25])[grid]
    able = np.array(toy.errors) @ errors <= limit
    return float((np.array(toy.work) @ shares)[able].min() / sum(toy.work))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_guided_finds_the_optimum(seed: int) -> None:
    """9 layers of 3 precisions: within 3 % of the best of 19,683, which is what counts as equal, in 40 trials."""
    toy = Toy.random(9, seed)
    best = best_of(Search(toy, space(constraints={"max_drop": 0.01}), seed=seed).run(40), "latency")
    assert best is not None
    assert toy.share(best.config) <= 1.03 * optimum(toy, 0.01)


def proposals(toy: Toy, parent: str, count: int = 200) -> tuple[list[float], list[float]]:
    """Drop and time ÷ FP32's of the moves that Guided proposes after one trial, uniform in the scheme `parent`."""
    wanted = space(precisions=["fp32", "int8"], constraints={"max_drop": 0.005})
    search = Search(toy, wanted)
    assert search.study is not None
    search.study.enqueue_trial({**dict.fromkeys(toy.names, parent), "rest": "fp32", "recipe": "default"})
    (trial,) = search.run(1)
    assert trial.feasible == (parent == "fp32")
    guide = Guide(search.choices, toy.graph, toy.sensitivity, "latency")
    sampler = Guided(search.choices, guide, seed=0, planned=0)
    frozen = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)
    configs = [search.choices.config(sampler.sample_relative(search.study, frozen, {})) for _ in range(count)]
    return [toy.drop(config) for config in configs], [toy.share(config) for config in configs]


def test_what_the_planner_proposes_again_is_mutated(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was asked three times then: another draw of its costs may lead elsewhere."""
    search = Search(Toy.random(12), space())
    assert search.study is not None
    (trial,) = search.run(1)
    tried = {name: str(value) for name, value in search.study.trials[0].params.items()}
    guide, asked = Guide(search.choices, search.toy.graph, search.toy.sensitivity, "latency"), []

    def propose(*_: object) -> Params:
        asked.append(1)
        return tried

    monkeypatch.setattr(guide.planner, "propose", propose)
    found = Guided(search.choices, guide, seed=0, planned=1).propose(search.study.trials)
    assert search.choices.config(found).id != trial.config.id
    assert len(asked) == 3


@pytest.mark.parametrize("planned", [0, 1])
@pytest.mark.parametrize(("training_s", "trained"), [(1.0, True), (100.0, False)])
def test_nothing_is_trained_while_training_has_had_its_time(training_s: float, trained: bool, planned: float) -> None:
    """Where nothing passes but what is trained."""
    toy = Toy(work=(1.0,) * 3, errors=(0.02,) * 3)
    wanted = space(precisions=["fp32", "int8"], stages=["ptq", "qat"], training={"steps": [1], "learning_rate": [0.1]})
    search = Search(toy, wanted)
    every = {"rest": "fp32", "recipe": "default", "qat.steps": "1", "qat.learning_rate": "0.1"}
    starts = [("a", {**dict.fromkeys(toy.names, scheme), **every}) for scheme in ("int8", "int8-qat")]
    assert search.study is not None
    enqueue(search.study, "both", starts)
    search.run(2)
    trials = search.study.get_trials()
    for trial, seconds in zip(trials, (10.0, training_s), strict=True):
        trial.user_attrs[SECONDS] = seconds
    found = []
    for seed in range(10):
        guide = Guide(search.choices, toy.graph, toy.sensitivity, "latency")
        found.append(Guided(search.choices, guide, seed, planned).propose(trials))
    assert any("int8-qat" in params.values() for params in found) is trained


def test_a_parent_within_the_limits_is_made_faster() -> None:
    """From FP32 every move is towards INT8, unless a second one takes it back; the likely ones cost little: most
    children stay within the drop."""
    toy = Toy.random(12)
    drops, shares = proposals(toy, "fp32")
    assert np.mean([share < 1 for share in shares]) > 0.98
    assert np.mean([drop <= 0.005 for drop in drops]) > 0.8


def test_a_parent_beyond_the_limits_is_repaired() -> None:
    """From INT8 every move removes an error; mostly a large one: on average more than a random layer's."""
    toy = Toy.random(12)
    drops, _ = proposals(toy, "int8")
    assert max(drops) < sum(toy.errors)
    assert sum(toy.errors) - np.mean(drops) > 2 * np.mean(toy.errors)


def told(values: Sequence[Sequence[float]], beyond: Sequence[float]) -> optuna.Study:
    """A study of finished trials with these objectives, and how far each is beyond its limit."""
    study = new_study(objectives=len(values[0]))
    for value, excess in zip(values, beyond, strict=True):
        trial = study.ask({"x": CategoricalDistribution(["a"])})
        trial.set_constraint("drop", excess)
        study.tell(trial, list(value))
    return study


@pytest.mark.parametrize("seed", range(5))
def test_the_front_holds_optunas_pareto_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    study = told(rng.random((30, 2)).tolist(), rng.uniform(-1, 1, 30).tolist())
    feasible = [trial.number for trial in front(study.trials) if is_feasible(trial)]
    assert sorted(feasible) == sorted(trial.number for trial in study.best_trials)


def test_the_front_holds_the_nearest_misses_that_are_faster() -> None:
    study = told([[0.5], [0.4], [0.3], [0.2], [0.9]], [-1.0, 0.2, 0.1, 0.3, 0.01])
    assert [trial.number for trial in front(study.trials)] == [0, 2]


def test_without_a_feasible_trial_the_front_is_the_three_nearest_misses() -> None:
    study = told([[0.5], [0.4], [0.3], [0.2]], [0.4, 0.2, 0.1, 0.3])
    assert [trial.number for trial in front(study.trials)] == [2, 1, 3]


def test_an_empty_study_has_no_front() -> None:
    assert front(new_study().trials) == []


def test_a_space_without_a_choice_is_proposed_once() -> None:
    toy = Toy.random(2)
    search = Search(toy, space(precisions=["int8"]))
    assert [trial.config.counts() for trial in search.run(10)] == [{"int8": 2}]


def test_every_category_of_a_choice_is_a_string() -> None:
    wanted = space(precisions=["fp32", "int8"], stages=["qat"], training={"steps": [3], "learning_rate": [1e-5]})
    found: Params = {name: values[0] for name, values in choices_of(Toy.random(2), wanted).categories().items()}
    assert found == {
        "layer0": "fp32",
        "layer1": "fp32",
        "rest": "fp32",
        "recipe": "default",
        "qat.steps": "3",
        "qat.learning_rate": "1e-05",
    }
