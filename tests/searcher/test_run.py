"""The loop: what it stores, when it ends, what a failure costs; and which trial is the best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError, MixqError
from mixq.latency import Interval
from mixq.searcher.objective import EQUAL, best_of, objective_value, violations
from mixq.searcher.run import Budget, enqueue
from mixq.searcher.space import Constraints
from mixq.searcher.stop import Stop
from mixq.searcher.study import Study, open_study
from mixq.searcher.trial import Trial
from mixq.searcher.warmstart import analyzed_starts, uniform_starts
from tests.searcher.toy import MODEL, Search, Toy, choices_of, config_ids, new_study, space

TOY = Toy.random(6)


def started(search: Search) -> Search:
    """With the warm start queued."""
    assert search.study is not None
    enqueue(search.study, "uniform", uniform_starts(search.choices))
    enqueue(search.study, "analyzed", analyzed_starts(search.choices, search.toy.sensitivity, recipes_first=True))
    return search


def test_as_many_trials_as_the_budget_says() -> None:
    search = Search(TOY, space())
    found = search.run(30)
    assert len(found) == len(search.evaluator.seen) == 30
    assert search.finished == found
    assert [trial.number for trial in found] == sorted(trial.number for trial in found)


def test_a_trial_is_what_was_evaluated() -> None:
    search = Search(TOY, space())
    for trial, config in zip(search.run(10), search.evaluator.seen, strict=True):
        assert trial.config == config
        assert trial.evaluation == TOY.evaluation(config)
        assert trial.state == "complete"
        assert trial.seconds >= 0


def test_the_warm_start_is_tried_first_and_in_order() -> None:
    search = started(Search(TOY, space()))
    later = analyzed_starts(search.choices, TOY.sensitivity, recipes_first=True)
    wanted = [*uniform_starts(search.choices), *later]
    found = search.run(len(wanted) + 5)
    assert [trial.origin for trial in found] == [origin for origin, _ in wanted] + ["guided"] * 5
    assert config_ids(found[: len(wanted)]) == [search.choices.config(params).id for _, params in wanted]


@pytest.mark.slow
def test_the_warm_start_is_queued_once_in_a_studys_life() -> None:
    study, toy = new_study(), Toy.random(3)
    for _ in range(2):
        found = started(Search(toy, space(), study=study)).run(1000)
    origins = [trial.origin for trial in found]
    assert origins.count("uniform int8") == 1
    assert len(origins) == 27
    assert len(study.trials) == 27  # what was seen before leaves nothing behind


@pytest.mark.parametrize("objectives", [["latency"], ["size"], ["latency", "size"]], ids=str)
def test_objectives_are_relative_to_fp32(objectives: list[str]) -> None:
    study = new_study(len(objectives))
    search = Search(TOY, space(objectives=objectives), study=study)
    for trial, frozen in zip(search.run(5), study.trials, strict=True):
        assert trial.evaluation is not None
        known = {"latency": 1 / trial.evaluation.speedup.median, "size": 1 / trial.evaluation.compression}
        assert frozen.values == pytest.approx([known[name] for name in objectives])


def test_constraints_are_stored_with_every_trial() -> None:
    limits = {"max_drop": 0.005, "max_latency_ms": 5.0, "max_size_mb": 0.6}
    search = Search(TOY, space(constraints=limits))
    for trial in search.run(20):
        drop, share = TOY.drop(trial.config), TOY.share(trial.config)
        assert trial.evaluation is not None
        size = trial.evaluation.size_bytes / 1e6
        stored = dict(trial.violations)
        assert stored == pytest.approx(
            {"drop": drop - 0.005, "latency_ms": 10 * share - 5, "size_mb": size - 0.6}, abs=1e-8
        )
        assert trial.feasible == (drop <= 0.005 and 10 * share <= 5 and size <= 0.6)
    assert {trial.feasible for trial in search.finished} == {True, False}


@pytest.mark.parametrize(("drop", "met"), [(0.72 - 0.715, True), (0.005, True), (0.0051, False), (-0.01, True)])
def test_a_drop_is_met_but_for_the_rounding_of_a_difference(drop: float, met: bool) -> None:
    """0.72 - 0.715 is a little more than 0.005 in floating point."""
    found = violations(replace(TOY.evaluation(uniform(TOY, "fp32")), drop=drop), Constraints(max_drop=0.005))
    assert found.keys() == {"drop"}
    assert (found["drop"] <= 0) == met


@pytest.mark.parametrize(("bound", "met"), [(None, True), (0.005, True), (0.0051, False)])
def test_with_a_confidence_the_bound_of_the_drop_decides(bound: float | None, met: bool) -> None:
    found = replace(TOY.evaluation(uniform(TOY, "fp32")), drop=0.001, drop_bound=bound)
    assert (violations(found, Constraints(max_drop=0.005, confidence=0.9))["drop"] <= 0) == met


def test_without_limits_nothing_is_violated() -> None:
    assert violations(TOY.evaluation(uniform(TOY, "int8")), Constraints(max_drop=None)) == {}


def uniform(toy: Toy, scheme: str) -> MixedPrecisionConfig:
    params = {**dict.fromkeys(toy.names, scheme), "rest": "fp32", "recipe": "default"}
    return choices_of(toy, space()).config(params)


@pytest.mark.slow
def test_a_resumed_search_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    first = started(on_disk(tmp_path))
    before = first.run(25)
    again = started(on_disk(tmp_path, seed=25))
    assert again.run(25) == before
    assert again.evaluator.seen == []
    after = again.run(40)
    assert after[:25] == before
    assert len(after) == len(set(config_ids(after))) == 40
    assert len(again.evaluator.seen) == 15


def on_disk(folder: Path, seed: int = 0) -> Search:
    study: Study = open_study(f"sqlite:///{folder / 'study.db'}", "toy", 1, {"model": MODEL})
    return Search(TOY, space(), seed=seed, study=study)


def test_the_elapsed_time_of_earlier_runs_counts_on() -> None:
    study = new_study()
    first = Search(TOY, space(), study=study).run(3)
    time.sleep(0.05)  # a pause between runs does not count
    second = Search(TOY, space(), study=study).run(6)[3:]
    assert [trial.elapsed_s for trial in (*first, *second)] == sorted(trial.elapsed_s for trial in (*first, *second))
    assert second[0].elapsed_s < first[-1].elapsed_s + 0.05


def judged(**changes: object) -> Search:
    search = Search(TOY, space(**changes))
    search.evaluator.judged = True
    return search


@pytest.mark.slow
@pytest.mark.parametrize(("max_drop", "begins"), [(0.02, "at most"), (0.001, "drop")])
def test_what_cannot_pass_or_win_is_pruned_with_its_reason(max_drop: float, begins: str) -> None:
    found = started(judged(constraints={"max_drop": max_drop})).run(60)
    pruned = [trial for trial in found if trial.state == "pruned"]
    assert len(found) == 60
    assert any(trial.reason.startswith(begins) for trial in pruned)
    for trial in pruned:
        assert (trial.evaluation, trial.feasible) == (None, False)
        assert trial.glimpse is not None
        assert trial.glimpse.speedup == TOY.evaluation(trial.config).speedup


@pytest.mark.slow
def test_pruning_does_not_lose_the_best() -> None:
    """The same configurations, whole: none that was pruned would have been the best."""
    found = started(judged()).run(60)
    whole = [
        replace(trial, state="complete", evaluation=evaluation, violations=tuple(beyond.items()))
        for trial in found
        for evaluation in [TOY.evaluation(trial.config)]
        for beyond in [violations(evaluation, Constraints(max_drop=0.02))]
    ]
    best, want = best_of(found, "latency"), best_of(whole, "latency")
    assert best is not None
    assert want is not None
    assert best.number == want.number


def test_uniform_configurations_are_measured_whole() -> None:
    found = started(judged()).run(20)
    assert {trial.state for trial in found if trial.origin.startswith("uniform")} == {"complete"}


@pytest.mark.parametrize("sampler", ["guided", "tpe"])
def test_every_sampler_goes_on_from_pruned_trials(sampler: str) -> None:
    assert len(started(judged(sampler=sampler, objectives=["latency", "size"])).run(40)) == 40


FAILURES = [
    InputError("the runtime refuses the model"),
    MixqError("training diverged"),
    RuntimeError("out of resources"),
    MemoryError("too large"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failing_trial_does_not_end_the_search(error: Exception) -> None:
    search = Search(TOY, space())
    search.evaluator.failing = failing_on(lambda config: len(search.evaluator.seen) == 4, error)
    found = search.run(12)
    assert [trial.state for trial in found] == ["complete"] * 3 + ["failed"] + ["complete"] * 8
    assert found[3].reason == f"{type(error).__name__}: {error}"
    assert (found[3].evaluation, found[3].feasible) == (None, False)
    assert search.finished == found


def failing_on(
    which: Callable[[MixedPrecisionConfig], bool], error: Exception
) -> Callable[[MixedPrecisionConfig], None]:
    def fail(config: MixedPrecisionConfig) -> None:
        if which(config):
            raise error

    return fail


def test_a_search_where_everything_fails_ends_and_tries_nothing_twice() -> None:
    toy = Toy.random(2)
    search = Search(toy, space())
    search.evaluator.failing = failing_on(lambda config: True, MixqError("no"))
    found = search.run(1000)
    assert {trial.state for trial in found} == {"failed"}
    assert len(found) == len(set(config_ids(found))) == 9
    assert best_of(found, "latency") is None


def test_a_mistake_of_our_own_is_not_hidden() -> None:
    search = Search(TOY, space())
    search.evaluator.failing = failing_on(lambda config: True, KeyError("layer"))
    with pytest.raises(KeyError):
        search.run(3)


def test_a_stop_ends_the_search_after_the_trial_in_flight() -> None:
    search, stop = Search(TOY, space()), Stop()

    def request(config: MixedPrecisionConfig) -> None:
        stop.requested = len(search.evaluator.seen) == 5

    search.evaluator.failing = request
    found = search.run(100, stop)
    assert len(found) == 5
    assert {trial.state for trial in found} == {"complete"}


def test_a_deadline_ends_the_search() -> None:
    assert Search(TOY, space()).run(100, deadline=time.monotonic() - 1) == []
    assert not Budget(1, 0.0).timed_out
    assert Budget(1, 0.0, time.monotonic() - 1).timed_out
    assert not Budget(1, 0.0, time.monotonic() + 60).timed_out


def trial(
    number: int,
    speedup: float,
    interval: tuple[float, float] | None = None,
    kl: float | None = 0.1,
    compression: float = 1.0,
    beyond: float = -1.0,
    output_mse: float = 0.1,
) -> Trial:
    """A finished trial; `interval` is the speed-up's."""
    low, high = interval or (speedup, speedup)
    found = replace(
        TOY.evaluation(uniform(TOY, "int8")),
        speedup=Interval(speedup, low, high),
        compression=compression,
        kl=kl,
        output_mse=output_mse,
    )
    return Trial(number, "complete", uniform(TOY, "int8"), "toy", 1.0, found, (("drop", beyond),))


def best_number(trials: list[Trial], objective: str = "latency") -> int | None:
    found = best_of(trials, "size" if objective == "size" else "latency")
    return None if found is None else found.number


def test_the_best_is_the_fastest_within_the_limits() -> None:
    assert best_number([trial(0, 1.5), trial(1, 3.0, beyond=0.01), trial(2, 2.0), trial(3, 1.9)]) == 2


def test_nothing_is_best_where_nothing_is_within_the_limits() -> None:
    assert best_number([trial(0, 2.0, beyond=0.1), trial(1, 1.0, beyond=0.01)]) is None
    assert best_number([]) is None


def test_a_failed_trial_is_never_best() -> None:
    failed = Trial(1, "failed", uniform(TOY, "int8"), "toy", 1.0, reason="no")
    assert best_number([failed]) is None
    assert best_number([trial(0, 1.1), failed]) == 0


def test_among_those_that_timing_cannot_tell_apart_the_closest_to_fp32_is_best() -> None:
    fastest = trial(0, 2.0, (1.9, 2.1), kl=0.3)
    assert best_number([fastest, trial(1, 1.95, kl=0.2), trial(2, 1.8, kl=0.01)]) == 1
    assert best_number([fastest, trial(1, 1.95, kl=0.4)]) == 0


def test_without_class_scores_the_output_error_says_what_is_closest() -> None:
    fastest = trial(0, 2.0, (1.9, 2.1), kl=None, output_mse=0.3)
    assert best_number([fastest, trial(1, 1.95, kl=None, output_mse=0.2)]) == 1


def test_a_timing_in_a_noisy_moment_does_not_win() -> None:
    assert best_number([trial(0, 3.0, (1.0, 5.0)), trial(1, 2.0, (1.9, 2.1))]) == 1


def test_of_equally_fast_ones_the_closest_to_fp32_is_best() -> None:
    slack = EQUAL["latency"]
    fastest, equal, slower = 2.0, 2.0 / (1 + slack / 2), 2.0 / (1 + 2 * slack)
    assert best_number([trial(0, fastest), trial(1, slower, kl=0.0)]) == 0
    assert best_number([trial(0, fastest), trial(1, equal, kl=0.0)]) == 1


def test_fp32_is_best_where_no_other_is_faster_for_sure() -> None:
    fp32 = replace(trial(0, 1.0, kl=0.0), config=uniform(TOY, "fp32"))
    assert best_number([fp32, trial(1, 0.9)]) == 0
    assert best_number([fp32, trial(1, 1.5, (0.99, 2.0))]) == 0
    assert best_number([fp32, trial(1, 1.5, (1.4, 1.6))]) == 1


def test_of_equal_sizes_the_closest_to_fp32_is_best() -> None:
    found = [trial(0, 9.0, compression=3.9), trial(1, 1.0, compression=4.0, kl=0.2), trial(2, 1.0, compression=4.0)]
    assert best_number(found, "size") == 2


def test_the_objective_is_what_is_left_of_fp32s() -> None:
    found = TOY.evaluation(uniform(TOY, "int8"))
    assert objective_value(found, "latency") == pytest.approx(0.25)
    assert objective_value(found, "size") == pytest.approx(0.25)
