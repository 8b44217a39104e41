"""Storages: opened by several at once, refused where they cannot be shared."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, OperationalError, PendingRollbackError, SQLAlchemyError

from mixq.errors import InputError, MixqError
from mixq.searcher.storage import check_shared, open_storage, patiently, sqlite_file
from mixq.searcher.study import join_study, open_study
from tests.searcher.toy import MODEL, Search, Toy, space

AT_ONCE = 4


def of_sqlite(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("the database is locked")
    error.sqlite_errorcode = code
    return error


def opened_at_once(url: str) -> None:
    """Each opener makes the tables that it does not find."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for storage in pool.map(open_storage, [url] * AT_ONCE):
            assert storage.get_all_studies() == []


def test_a_new_file_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    opened_at_once(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a/study.db", "a/study.db"),
        ("sqlite+pysqlite:////a/study.db?timeout=3", "/a/study.db"),
        ("sqlite:///a{{b}}.db", "a{b}.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("sqlite:///file:a?mode=memory&uri=true", None),
        ("postgresql://host/a", None),
    ],
)
def test_the_file_of_a_storage(url: str, path: str | None) -> None:
    assert sqlite_file(url) == (None if path is None else Path(path))


@pytest.mark.parametrize("url", ["sqlite:///a.db", "postgresql://host/a", "postgresql+psycopg://me:pw@host/a"])
def test_what_may_be_shared(url: str) -> None:
    check_shared(url)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://me:s3cret@host/a", "garbage", "sqlite:x"])
def test_what_may_not_be_shared(url: str) -> None:
    with pytest.raises(InputError) as refused:
        check_shared(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("cause", "waits"),
    [
        (OperationalError("SELECT", {}, sqlite3.OperationalError("the server is away")), True),
        (OperationalError("SELECT", {}, of_sqlite(sqlite3.SQLITE_BUSY)), True),
        (PendingRollbackError("the server is away, and Optuna asked on"), True),
        (OperationalError("SELECT", {}, of_sqlite(sqlite3.SQLITE_ERROR)), False),
        (DataError("INSERT", {}, ValueError("too long")), False),
    ],
    ids=["away", "locked", "asked on", "no such table", "too long"],
)
def test_only_an_outage_is_waited_for(cause: SQLAlchemyError, waits: bool) -> None:
    """Optuna's own error says the same of each: that a commit has failed."""
    calls = list[int]()

    def call() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise StorageInternalError("during the commit") from cause
        return len(calls)

    if waits:
        assert patiently(call) == 2
        calls.clear()
        with pytest.raises(MixqError, match=r"away for 0 s \(.*(away|locked).*\); nothing that is finished is lost"):
            patiently(call, longest_s=0.0)
    else:
        with pytest.raises(StorageInternalError):
            patiently(call)


def test_a_proposal_reads_the_study_once_and_writes_its_trial_at_once(tmp_path: Path) -> None:
    """Each call of a storage is a transaction or several; on a database far away, milliseconds each."""
    study = open_study(f"sqlite:///{tmp_path}/study.db", "toy", 1, {"model": MODEL})
    search, calls = Search(Toy.random(3), space(), study=study), Counter[str]()
    search.run(5)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_new_trial", "get_all_trials", "set_trial_param", "set_trial_user_attr"):
            patch.setattr(study._storage, name, counted_in(calls, getattr(study._storage, name)))
        assert len(search.run(15)) == 15
    assert calls["create_new_trial"] == 10
    assert calls["set_trial_param"] == 0
    assert calls["get_all_trials"] <= 3 * 10 + 5
    assert calls["set_trial_user_attr"] <= 5 * 10


def test_what_trials_have_in_common_is_kept_once(tmp_path: Path) -> None:
    """Of 1,000 trials it is most of what they take; what they are is what Optuna reads by itself."""
    url = f"sqlite:///{tmp_path}/study.db"
    study = open_study(url, "toy", 1, {"model": MODEL})
    Search(Toy.random(3), space(), study=study).run(8)
    plain = optuna.load_study(study_name="toy", storage=url).trials
    for found in (study.get_trials(deepcopy=False), join_study(url, "toy").get_trials(deepcopy=False)):
        assert [(t.params, t.distributions) for t in found] == [(t.params, t.distributions) for t in plain]
        for name, distribution in found[0].distributions.items():
            assert all(trial.distributions[name] is distribution for trial in found)
            assert isinstance(distribution, CategoricalDistribution)
            assert all(any(trial.params[name] is choice for choice in distribution.choices) for trial in found)


def counted_in(calls: Counter[str], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*positional: Any, **named: Any) -> Any:
        calls[function.__name__] += 1
        return function(*positional, **named)

    return call
