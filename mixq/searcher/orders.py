"""Orders: what the search that leads a study tells its workers, through the study."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from mixq.errors import InputError
from mixq.process import ProcessId
from mixq.searcher.interrupted import GRACE_SECONDS, Beat, Signs
from mixq.searcher.run import Budget
from mixq.searcher.stop import Ending
from mixq.searcher.study import Study

SETTINGS, ORDERS, LEADER_BEAT = "mixq:settings", "mixq:orders", "mixq:leader_beat"


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
    """Of one run. trials: of the whole study; began: time.time() of its start; earlier_s: seconds of earlier runs.

    Clocks of hosts that differ shift `Trial.elapsed_s` of those evaluated there, and nothing else.
    """

    trials: int
    began: float
    earlier_s: float
    leader: ProcessId
    over: bool = False

    @property
    def budget(self) -> Budget:
        return Budget(self.trials, time.monotonic() - (time.time() - self.began), None, self.earlier_s)


def announce(study: Study, settings: Settings, budget: Budget) -> None:
    """This process leads the study from now on."""
    study.set_user_attr(SETTINGS, {**asdict(settings), "space": dict(settings.space)})
    _store(study, Orders(budget.trials, time.time() - budget.run_s, budget.earlier_s, ProcessId.own()))


def call_off(study: Study) -> None:
    """Workers are to leave after the trial in flight."""
    _store(study, replace(load_orders(study), over=True))


def load_settings(study: Study) -> Settings:
    """Raises InputError where no search has announced any."""
    found = study.user_attrs.get(SETTINGS)
    if found is None:
        raise InputError(f"the study {study.study_name!r} is none that mixq search has opened; start that first")
    return Settings(**found)


def load_orders(study: Study) -> Orders:
    found: dict[str, Any] = study.user_attrs[ORDERS]
    return Orders(**{**found, "leader": ProcessId(**found["leader"])})


def leader_beat(study: Study) -> Beat:
    """Leaves the leader's signs of life."""
    return partial(study.set_user_attr, LEADER_BEAT)


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
        return self._signs.silent_s(leader, self._study.user_attrs.get(LEADER_BEAT)) <= self._grace_s


def _store(study: Study, orders: Orders) -> None:
    study.set_user_attr(ORDERS, asdict(orders))
