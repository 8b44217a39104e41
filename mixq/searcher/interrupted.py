"""Interrupted: trials whose process ended without telling how they went; they fail, and are tried again.

A process on this host can be looked for. Of others it is known that they live by their heartbeats: a number in the
trial that they keep on changing. Who watches goes by its own clock, so that those of hosts need not agree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from types import TracebackType

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mixq.errors import MixqError
from mixq.process import ProcessId
from mixq.searcher.storage import Turn, patiently
from mixq.searcher.study import ATTEMPT, BEAT, ORIGIN, WORKER, Frozen, Study, read_trials, to_retry

BEAT_SECONDS = 5.0
GRACE_SECONDS = 60.0  # without a heartbeat
RETRIES = "mixq:retries"  # of a trial: the number of the one that it tries again


Beat = Callable[[int], None]
"""Leaves a number that is another one each time."""


class Heart:
    """Beats in a thread of its own, for the duration of a context."""

    def __init__(self, seconds: float = BEAT_SECONDS) -> None:
        self._seconds = seconds
        self._beat: Beat | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def beat_for(self, trial: optuna.Trial | None) -> None:
        """From now on for the trial that this process evaluates; None: for none."""
        self.beat_by(None if trial is None else partial(trial.set_user_attr, BEAT))

    def beat_by(self, beat: Beat | None) -> None:
        self._beat = beat

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        beats = 0
        while not self._over.wait(self._seconds):
            beat, beats = self._beat, beats + 1
            # Where the storage is away, or the trial was told meanwhile, the search itself will notice.
            with suppress(OptunaError, SQLAlchemyError, MixqError):
                if beat is not None:
                    beat(beats)


class Signs:
    """For how long signs of life did not change, by the clock of who looks."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[object, float]] = {}

    def silent_s(self, of: object, sign: object) -> float:
        """Seconds since the first look at which `of` gave this sign."""
        now = time.monotonic()
        if of not in self._known or self._known[of][0] != sign:
            self._known[of] = sign, now
        return now - self._known[of][1]


class Watch:
    """Watches the trials of a study that are being evaluated. turn: that of the processes which propose them."""

    def __init__(self, study: Study, grace_s: float = GRACE_SECONDS, turn: Turn = nullcontext) -> None:
        self._study, self._grace_s, self._turn, self._signs = study, grace_s, turn, Signs()

    def running(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def look(self) -> None:
        """Note the signs of life that there are now."""
        for trial in self.running():
            self._is_lost(trial)

    def clear_up(self, trials: Frozen | None = None) -> int:
        """Fail the trials whose process is gone, queue again what was interrupted; the number of the latter.

        trials: all of the study, where they were just read.
        """
        known = read_trials(self._study) if trials is None else trials
        running = [trial for trial in known if trial.state is TrialState.RUNNING]
        unowned = any(WORKER not in trial.user_attrs for trial in running)
        if unowned:
            patiently(self._fail_unowned)
        lost = [trial for trial in running if self._is_lost(trial)]
        for trial in lost:
            fail(self._study, trial)
        return requeue(self._study, read_trials(self._study) if lost or unowned else known)

    def _fail_unowned(self) -> None:
        """Fail the trials of whoever was killed while it proposed them: in its turn, each gets its process."""
        with self._turn():
            for trial in self.running():
                if WORKER not in trial.user_attrs:
                    fail(self._study, trial)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        known = trial.user_attrs.get(WORKER)
        if known is None:  # it is being proposed
            return False
        worker = ProcessId.from_json(known)
        if worker.is_local:
            return worker.is_gone
        sign = known, trial.user_attrs.get(BEAT)
        return self._signs.silent_s(trial.number, sign) > self._grace_s


def fail(study: Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Unless it was told meanwhile."""
    with suppress(ValueError, UpdateFinishedTrialError):
        study.tell(trial.number, state=TrialState.FAIL)


@contextmanager
def given_up(study: Study, trial: FrozenTrial | optuna.Trial) -> Iterator[None]:
    """What ends the block with an exception, a full disk or Ctrl-C, leaves the trial to be tried again, if it can."""
    try:
        yield
    except BaseException:
        with suppress(OptunaError, SQLAlchemyError, MixqError, OSError):
            fail(study, trial)
        raise


def requeue(study: Study, trials: Frozen) -> int:
    """Queue again those of a study's trials that were interrupted, are to be tried again and are not queued; how many.

    To be done by one process of a study, which may be killed at any moment: what is queued says what it is for.
    """
    queued = {trial.user_attrs[RETRIES] for trial in trials if RETRIES in trial.user_attrs}
    lost = [trial for trial in trials if to_retry(trial) and trial.number not in queued]
    found = [(trial, params) for trial in lost if (params := trial.system_attrs.get("fixed_params", trial.params))]
    for trial, params in found:
        attributes = {RETRIES: trial.number, ATTEMPT: trial.user_attrs.get(ATTEMPT, 1) + 1}
        if ORIGIN in trial.user_attrs:
            attributes[ORIGIN] = trial.user_attrs[ORIGIN]
        study.enqueue_trial(params, user_attrs=attributes)
    return len(found)
