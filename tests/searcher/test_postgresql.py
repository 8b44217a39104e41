"""Studies on PostgreSQL: what they are on SQLite, from several processes, and with no password in any word."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy
from optuna.trial import TrialState

from mixq.config import MixedPrecisionConfig
from mixq.errors import InputError
from mixq.process import ProcessId
from mixq.searcher.interrupted import Watch
from mixq.searcher.run import Budget, run
from mixq.searcher.samplers import distributions
from mixq.searcher.stop import Stop
from mixq.searcher.storage import turn_at
from mixq.searcher.study import WORKER, join_study, open_study, store_trial, trials_of
from tests.postgresql import PASSWORD, Server, running
from tests.searcher.test_storage import opened_at_once
from tests.searcher.toy import MODEL, Search, Toy, config_ids, space

# An Optuna study cannot be closed: its pool of connections goes when it is collected, which psycopg warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOY, SMALL = Toy.random(4), Toy.random(3)
IDENTITY = {"model": MODEL}


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Here, and not in a later test, where a warning is an error."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


@pytest.mark.slow
def test_a_study_is_resumed_and_comes_back_as_it_was(server: Server) -> None:
    study = open_study(server.url, "resumed", 1, IDENTITY)
    found = Search(TOY, space(), study=study).run(4)
    again = open_study(server.url, "resumed", 1, IDENTITY)
    assert trials_of(again) == found
    assert len(Search(TOY, space(), study=again).run(6)) == 6
    assert trials_of(join_study(server.url, "resumed"))[:4] == found


def test_another_identity_is_refused(server: Server) -> None:
    open_study(server.url, "refused", 1, IDENTITY)
    with pytest.raises(InputError, match=r"made for something else \(model: "):
        open_study(server.url, "refused", 1, {"model": "another"})


def work(url: str, seed: int, trials: int) -> None:
    """A process of several."""
    study = join_study(url, "shared")
    search = Search(SMALL, space(), seed=seed, study=study)
    turn = turn_at(url, "shared")
    known = (study, search.evaluator, search.choices, search.wanted, Budget(trials, 0.0), Stop())
    run(*known, search.finished.append, turn=turn)


def test_a_new_database_may_be_opened_by_several_at_once(server: Server) -> None:
    url = server.url.removesuffix("postgres") + "new"
    engine = sqlalchemy.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("CREATE DATABASE new"))
    opened_at_once(url)


@pytest.mark.slow
def test_several_processes_evaluate_nothing_twice(server: Server) -> None:
    """27 configurations for 20 trials: without taking turns, they would collide."""
    open_study(server.url, "shared", 1, IDENTITY)
    context: Any = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(server.url, seed, 20)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    study = join_study(server.url, "shared")
    found = trials_of(study)
    assert Counter(config_ids(found)).most_common(1)[0][1] == 1
    assert len(found) == 20
    assert len({trial.user_attrs[WORKER] for trial in study.trials if WORKER in trial.user_attrs}) == 2
    assert not [trial for trial in study.trials if trial.state is TrialState.RUNNING]


def test_what_a_process_elsewhere_left_is_tried_again(server: Server) -> None:
    study = open_study(server.url, "left", 1, IDENTITY)
    search = Search(TOY, space(), study=study)
    asked = study.ask(distributions(search.choices))
    config = search.choices.config({name: str(value) for name, value in asked.params.items()})
    store_trial(asked, config, "guided")
    asked.set_user_attr(WORKER, ProcessId("elsewhere", "another boot", 1, "1").to_json())
    watch = Watch(study, grace_s=0.0)
    assert [watch.clear_up(), watch.clear_up()] == [0, 1]
    assert config_ids(search.run(1)) == [config.id]


@pytest.mark.slow
def test_a_restart_of_the_server_costs_nothing(server: Server) -> None:
    """It goes away in the middle of two evaluations, and comes back a moment later."""
    study = open_study(server.url, "restarted", 1, IDENTITY)
    search, restarts = Search(TOY, space(), study=study), list[threading.Timer]()

    def restart(_config: MixedPrecisionConfig) -> None:
        if len(search.evaluator.seen) in {3, 6}:
            server.stop()
            restarts.append(threading.Timer(1.0, server.start))
            restarts[-1].start()

    search.evaluator.failing = restart
    found = search.run(8)
    for timer in restarts:
        timer.join()
    assert len(restarts) == 2
    assert [trial.state for trial in found] == ["complete"] * 8
    assert config_ids(found) == [config.id for config in search.evaluator.seen]
    assert search.finished == list(found)


@pytest.mark.slow
def test_whoever_reads_or_writes_a_study_waits_for_its_server(server: Server) -> None:
    study = open_study(server.url, "away", 1, IDENTITY)
    asked = study.ask()
    calls: tuple[Callable[[], object], ...] = (
        lambda: study.user_attrs,
        lambda: study.set_user_attr("key", "value"),
        lambda: asked.set_user_attr("key", "value"),
        lambda: study.tell(asked, 1.0),
        lambda: study.trials,
    )
    for call in calls:
        with stopped_for_a_moment(server):
            call()
    assert study.user_attrs["key"] == "value"
    assert [(trial.user_attrs, trial.value) for trial in study.trials] == [({"key": "value"}, 1.0)]


def test_a_lost_turn_is_taken_again(server: Server) -> None:
    """Another may have had it meanwhile, and have proposed the same: the trial that was begun is tried again later."""
    study = open_study(server.url, "turn", 1, IDENTITY)
    search, turn, turns = Search(SMALL, space(), study=study), turn_at(server.url, "turn"), list[int]()

    @contextmanager
    def lost_once() -> Iterator[None]:
        turns.append(1)
        with turn():
            yield
            if len(turns) == 3:
                server.stop()
                server.start()

    search.turn = lost_once
    found = search.run(6)
    assert [trial.state for trial in found] == ["complete"] * 6
    assert len(set(config_ids(found))) == 6
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 1
    assert Watch(study).clear_up() == 1
    assert not [trial for trial in study.trials if trial.state is TrialState.RUNNING]


@contextmanager
def stopped_for_a_moment(server: Server) -> Iterator[None]:
    server.stop()
    back = threading.Timer(1.0, server.start)
    back.start()
    yield
    back.join()


@pytest.mark.parametrize("wrong", ["password", "port"])
def test_no_password_is_shown(server: Server, wrong: str) -> None:
    url = server.url.replace(PASSWORD, f"not-{PASSWORD}")
    if wrong == "port":
        url = f"postgresql://user:{PASSWORD}@127.0.0.1:1/postgres"
    with pytest.raises(InputError, match="cannot be opened") as refused:
        open_study(url, "none", 1, IDENTITY)
    assert PASSWORD not in str(refused.value)
    error: BaseException | None = refused.value
    while error is not None:
        assert PASSWORD not in str(error)
        error = error.__cause__
