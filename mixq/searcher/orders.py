"""Orders: what the search that leads a study tells its workers, through the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mixq.errors import InputError
from mixq.process import ProcessId
from mixq.searcher.interrupted import GRACE_SECONDS, Beat, Signs
from mixq.searcher.run import Budget
from mixq.searcher.stop import Ending
from mixq.searcher.storage import StorageAwayError, Turn
from mixq.searcher.study import NoStudyError, Study, join_study, read_trials, seen_configs

WAIT_SECONDS = 2.0  # between two looks for a study
SETTINGS, ORDERS, LEADER_BEAT = "mixq:settings", "mixq:orders", "mixq:leader_sign"


@dataclass(frozen=True)
class Settings:
    """What a worker has to evaluate with, the same for all of a study. folder: of the results, on the leader's host."""

    space: Mapping[str, Any]
    runtime: str
    threads: int
    seed: int
    folder: str


@dataclass(frozen=True)
class Orders:
    """Of one run. trials: of the whole study; elapsed_s: seconds that the study had spent when they were given."""

    trials: int
    elapsed_s: float
    leader: ProcessId
    over: bool = False


def take_the_lead(
    study: Study,
    settings: Settings,
    budget: Budget,
    turn: Turn,
    say: Callable[[str], None],
    grace_s: float = GRACE_SECONDS,
) -> None:
    """This process leads the study from now on. Raises InputError where another one does.

    say: is told where that can only be seen by its heartbeats.
    """
    with turn():
        known = _known_orders(study)
        if known is not None and not known.over and not known.leader.is_local:
            say(f"looking for {grace_s:.0f} s whether the search on {known.leader.host} still leads this study")
        if known is not None and not known.over and _is_led_by_another(study, known.leader, grace_s):
            raise InputError(
                f"another mixq search leads the study {study.study_name!r} (on {known.leader.host}, process "
                f"{known.leader.pid}); wait for it to end, join it with mixq worker, or give another --study"
            )
        study.set_user_attr(SETTINGS, {**asdict(settings), "space": dict(settings.space)})
        _store(study, Orders(budget.trials, budget.elapsed_s, ProcessId.own()))


def _is_led_by_another(study: Study, leader: ProcessId, grace_s: float) -> bool:
    """Of a process elsewhere that is seen by its heartbeats, for which it takes some time to wait."""
    if leader.is_local:
        return leader != ProcessId.own() and not leader.is_gone
    beat, end = _last_beat(study), time.monotonic() + grace_s
    while time.monotonic() < end:
        if _last_beat(study) != beat:
            return True
        time.sleep(min(1.0, grace_s / 10))
    return False


def await_study(storage: str, name: str, stop: Ending, longest_s: float = 0.0) -> Study:
    """The study `name`, once a search leads it that has trials left; waits for that, but for `longest_s` at most.

    Raises NoStudyError where no search has opened it by then.
    """
    end = time.monotonic() + longest_s
    while True:
        is_late = stop.requested or time.monotonic() >= end
        try:
            study = join_study(storage, name)
            load_settings(study)
            orders = load_orders(study)
        except (NoStudyError, StorageAwayError):
            if is_late:
                raise
        else:
            if is_late or not orders.over or len(seen_configs(read_trials(study))) >= orders.trials:
                return study
        time.sleep(WAIT_SECONDS)


def call_off(study: Study) -> None:
    """Workers are to leave after the trial in flight."""
    _store(study, replace(load_orders(study), over=True))


def load_settings(study: Study) -> Settings:
    """Raises NoStudyError where no search has announced any."""
    found = study.user_attrs.get(SETTINGS)
    if found is None:
        raise NoStudyError(f"the study {study.study_name!r} is none that mixq search has opened; start that first")
    return Settings(**found)


def load_orders(study: Study) -> Orders:
    """Raises NoStudyError where nobody has ever led the study."""
    found = _known_orders(study)
    if found is None:
        raise NoStudyError(f"nobody leads the study {study.study_name!r}; start mixq search first")
    return found


def _known_orders(study: Study) -> Orders | None:
    found: dict[str, Any] | None = study.user_attrs.get(ORDERS)
    if found is None or found.keys() != {field.name for field in fields(Orders)}:
        return None  # none, or those of another version, which leads no more
    return Orders(**{**found, "leader": ProcessId(**found["leader"])})


def load_budget(study: Study) -> Budget:
    """A worker's: seconds go on from those of the leader's last sign, so that clocks of hosts need not agree."""
    orders, (_, elapsed_s) = load_orders(study), _last_beat(study)
    return Budget(orders.trials, time.monotonic(), None, max(orders.elapsed_s, elapsed_s))


def leader_beat(study: Study, budget: Budget) -> Beat:
    """Leaves the leader's signs of life, and the seconds that the study has spent."""
    return lambda number: study.set_user_attr(LEADER_BEAT, [number, budget.elapsed_s])


def _last_beat(study: Study) -> tuple[int, float]:
    number, elapsed_s = study.user_attrs.get(LEADER_BEAT, (0, 0.0))
    return number, elapsed_s


class Followed:
    """The orders of a study as a worker sees them: whether it is to end, and whether anybody leads.

    stop: what else may end it.
    """

    def __init__(self, study: Study, stop: Ending, grace_s: float = GRACE_SECONDS) -> None:
        self._study, self._stop, self._grace_s, self._signs = study, stop, grace_s, Signs()

    @property
    def requested(self) -> bool:
        return self._stop.requested or load_orders(self._study).over

    @property
    def is_led(self) -> bool:
        leader = load_orders(self._study).leader
        if leader.is_local:
            return not leader.is_gone
        return self._signs.silent_s(leader, _last_beat(self._study)) <= self._grace_s


def _store(study: Study, orders: Orders) -> None:
    study.set_user_attr(ORDERS, asdict(orders))
