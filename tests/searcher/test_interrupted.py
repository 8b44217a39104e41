"""Interrupted trials: told from living ones, tried again and not for ever; counted once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mixq.config import MixedPrecisionConfig
from mixq.process import ProcessId
from mixq.searcher.history import History
from mixq.searcher.interrupted import Heart, Watch, requeue
from mixq.searcher.run import enqueue
from mixq.searcher.samplers import distributions
from mixq.searcher.storage import turn_at
from mixq.searcher.study import (
    BEAT,
    MOST_ATTEMPTS,
    WORKER,
    Study,
    open_study,
    read_trials,
    seen_configs,
    store_trial,
    trials_of,
)
from mixq.searcher.warmstart import uniform_starts
from tests.searcher.toy import MODEL, Search, Toy, choices_of, config_ids, space

TOY = Toy.random(3)
ELSEWHERE = ProcessId("other", "another boot", 1, "1")


def opened(folder: Path) -> Study:
    return open_study(f"sqlite:///{folder / 'study.db'}", "toy", 1, {"model": MODEL})


def uniform(scheme: str) -> MixedPrecisionConfig:
    choices = choices_of(TOY, space())
    return choices.config({**dict.fromkeys(TOY.names, scheme), "rest": "fp32", "recipe": "default"})


@pytest.fixture
def gone() -> ProcessId:
    """A process that was killed."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        found = ProcessId.of(process.pid)
        assert not found.is_gone
        process.kill()
        end = time.monotonic() + 60
        while not found.is_gone:  # as a zombie, too
            assert time.monotonic() < end
    assert found.is_gone
    return found


def begun(study: Study, worker: ProcessId, scheme: str = "int8") -> optuna.Trial:
    """A trial that a worker began."""
    params = {**dict.fromkeys(TOY.names, scheme), "rest": "fp32", "recipe": "default"}
    study.enqueue_trial(params, user_attrs={"mixq:origin": f"uniform {scheme}"})
    asked = study.ask(distributions(choices_of(TOY, space())))
    store_trial(asked, uniform(scheme), f"uniform {scheme}")
    asked.set_user_attr(WORKER, worker.to_json())
    return asked


def states(study: Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def test_a_trial_of_a_process_that_is_gone_is_tried_again(tmp_path: Path, gone: ProcessId) -> None:
    study = opened(tmp_path)
    begun(study, gone)
    assert seen_configs(study.trials) == {uniform("int8").id}
    assert Watch(opened(tmp_path)).clear_up() == 1
    assert Watch(opened(tmp_path)).clear_up() == 0
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    assert (trials_of(study), seen_configs(study.trials)) == ([], set())
    found = Search(TOY, space(), study=study).run(1)
    assert [(trial.number, trial.state, trial.origin) for trial in found] == [(1, "complete", "uniform int8")]
    assert config_ids(found) == [uniform("int8").id]


def test_a_trial_of_who_was_killed_while_it_proposed_is_tried_again(tmp_path: Path) -> None:
    """Its trial runs, and says not yet whose it is; whoever still proposes has the turn."""
    study, url = opened(tmp_path), f"sqlite:///{tmp_path / 'study.db'}"
    enqueue(study, "uniform", uniform_starts(choices_of(TOY, space()))[:1])
    study.ask(distributions(choices_of(TOY, space())))
    looked = threading.Thread(target=Watch(opened(tmp_path), turn=turn_at(url, "toy")).clear_up)
    with turn_at(url, "toy")():
        looked.start()
        looked.join(0.2)
        assert states(study) == [TrialState.RUNNING]
    looked.join()
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]
    (trial,) = Search(TOY, space(), study=study).run(1)
    assert (trial.number, trial.origin) == (1, study.trials[0].user_attrs["mixq:origin"])


def test_what_a_retried_trial_violates_is_its_own(tmp_path: Path, gone: ProcessId) -> None:
    """Optuna's own retry inherits the constraints of the trial that was killed."""
    study = opened(tmp_path)
    asked = begun(study, gone, "fp32")
    asked.set_constraint("drop", 5.0)
    Watch(study).clear_up()
    (trial,) = Search(TOY, space(), study=study).run(1)
    assert trial.feasible
    assert dict(trial.violations)["drop"] < 0


@pytest.mark.slow
def test_a_configuration_that_kills_is_given_up(tmp_path: Path, gone: ProcessId) -> None:
    study = opened(tmp_path)
    begun(study, gone)
    for _ in range(MOST_ATTEMPTS - 1):
        assert Watch(study).clear_up() == 1
        again = study.ask(distributions(choices_of(TOY, space())))
        store_trial(again, uniform("int8"), "uniform int8")
        again.set_user_attr(WORKER, gone.to_json())
    assert Watch(study).clear_up() == 0
    assert states(study) == [TrialState.FAIL] * MOST_ATTEMPTS
    (trial,) = trials_of(study)
    assert (trial.state, trial.reason) == ("failed", "interrupted: its process was killed, 3 times")
    assert config_ids(Search(TOY, space(), study=study).run(1000)).count(uniform("int8").id) == 1


def test_a_queued_start_that_was_killed_before_it_had_a_configuration_is_queued_again(
    tmp_path: Path, gone: ProcessId
) -> None:
    study = opened(tmp_path)
    search = Search(TOY, space(), study=study)
    enqueue(study, "uniform", uniform_starts(search.choices))
    study.ask().set_user_attr(WORKER, gone.to_json())
    Watch(study).clear_up()
    found = search.run(len(uniform_starts(search.choices)))
    assert sorted(trial.origin for trial in found) == sorted(origin for origin, _ in uniform_starts(search.choices))


def test_a_living_process_keeps_its_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    begun(study, ProcessId.own())
    watch = Watch(study, grace_s=0.0)
    for _ in range(3):
        assert watch.clear_up() == 0
    assert states(study) == [TrialState.RUNNING]


def test_one_elsewhere_keeps_its_trial_for_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = begun(study, ELSEWHERE)
    watch = Watch(study, grace_s=0.2)
    for beat in range(5):
        asked.set_user_attr(BEAT, beat)
        assert watch.clear_up() == 0
        time.sleep(0.1)
    time.sleep(0.3)
    assert watch.clear_up() == 1
    assert states(study) == [TrialState.FAIL, TrialState.WAITING]


def test_a_heart_beats_for_a_trial(tmp_path: Path) -> None:
    study = opened(tmp_path)
    asked = begun(study, ELSEWHERE)
    with Heart(seconds=0.02) as heart:
        heart.beat_for(asked)
        end = time.monotonic() + 60
        while opened(tmp_path).trials[0].user_attrs.get(BEAT, 0) < 3:
            assert time.monotonic() < end
        study.tell(asked, 0.5)  # told while it beats: no harm is done


def test_what_was_given_up_is_not_told_any_more(tmp_path: Path) -> None:
    """A process that was stopped for long comes back: its result counts no more, and its search goes on."""
    study = opened(tmp_path)
    search = Search(TOY, space(), study=study)

    def give_up(_config: MixedPrecisionConfig) -> None:
        if len(search.evaluator.seen) == 1:
            other = opened(tmp_path)
            other.tell(0, state=TrialState.FAIL)
            assert requeue(other, read_trials(other)) == 1

    search.evaluator.failing = give_up
    found = search.run(2)
    assert study.trials[0].state is TrialState.FAIL
    assert [trial.number for trial in found] == [1, 2]
    assert found == search.finished
    assert config_ids(found)[0] == search.evaluator.seen[0].id


def test_a_history_reads_each_trial_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    history = History(opened(tmp_path))
    first = Search(TOY, space(), study=study).run(3)
    assert history.update() == list(first)
    assert history.update() == []
    both = Search(TOY, space(), study=study).run(5)
    assert history.update() == list(both[3:])
    assert history.trials == list(both)


def test_processes_of_other_hosts_are_never_known_to_be_gone() -> None:
    assert not ELSEWHERE.is_gone
    assert ProcessId.from_json(ELSEWHERE.to_json()) == ELSEWHERE
    own = ProcessId.own()
    assert own.is_local
    assert not own.is_gone
    assert replace(own, start="1").is_gone  # its number was given to another since
