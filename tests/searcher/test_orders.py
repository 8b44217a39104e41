"""Orders: a worker waits for a search that is not there yet; what another version left does not stop a search."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from optuna.storages import BaseStorage

from mixq.errors import InputError
from mixq.searcher import orders, storage
from mixq.searcher.orders import ORDERS, Settings, await_study, load_orders, take_the_lead
from mixq.searcher.run import Budget
from mixq.searcher.storage import StorageAwayError
from mixq.searcher.study import NoStudyError, Study, open_study

SETTINGS = Settings(space={}, runtime="openvino", threads=1, seed=0, folder="")


class Signal:
    requested = False


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "WAIT_SECONDS", 0.01)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


def led(url: str, trials: int = 5) -> Study:
    study = open_study(url, "s", 1, {})
    take_the_lead(study, SETTINGS, Budget(trials, time.monotonic()), nullcontext, print)
    return study


def test_a_study_that_is_led_is_joined_at_once(url: str) -> None:
    led(url)
    assert await_study(url, "s", Signal()).study_name == "s"


def test_without_a_wait_a_missing_study_is_an_error(url: str) -> None:
    with pytest.raises(NoStudyError):
        await_study(url, "s", Signal())


def test_a_study_that_comes_later_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no file, then a study that nobody leads, then one that is led."""
    steps: list[Callable[[], object]] = [lambda: open_study(url, "s", 1, {}), lambda: led(url)]
    monkeypatch.setattr("mixq.searcher.orders.time.sleep", lambda _: steps.pop(0)())
    assert load_orders(await_study(url, "s", Signal(), 100)).trials == 5
    assert not steps


def test_a_database_that_does_not_answer_yet_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    led(url)
    opened, answers = storage.open_storage, [False, False, True]

    def open_storage(where: str) -> BaseStorage:
        if not answers.pop(0):
            raise StorageAwayError("no answer")
        return opened(where)

    monkeypatch.setattr("mixq.searcher.study.open_storage", open_storage)
    await_study(url, "s", Signal(), 100)
    assert not answers


def test_it_is_told_from_a_url_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(StorageAwayError, match="cannot be opened"):
        storage.open_storage(f"sqlite:///{tmp_path}/no folder/study.db")
    with pytest.raises(InputError) as raised:
        storage.open_storage("no such thing")
    assert not isinstance(raised.value, StorageAwayError)


def test_a_wait_ends(url: str) -> None:
    with pytest.raises(NoStudyError):
        await_study(url, "s", Signal(), 0.05)


def test_orders_of_another_version_are_none(url: str) -> None:
    study = led(url)
    study.set_user_attr(ORDERS, {"trials": 5, "began": 1e9, "earlier_s": 0.0, "leader": {"pid": 1}, "over": False})
    with pytest.raises(NoStudyError):
        load_orders(study)
    assert load_orders(led(url, 7)).trials == 7
