"""Turns: whoever times has its cores for itself, whoever computes shares them; among all mixq processes of a host.

The locks are files that the kernel unlocks when their holder ends, however it ends: nothing is left to be cleared up.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mixq import machine

TIMING = "timing"
LOCKS = "MIXQ_LOCKS"  # the folder of the locks, where that for temporary files is not the same for all of a host
LONGEST_WAIT = 120.0  # seconds: a process that was stopped (Ctrl-Z) with a lock does not stop all others
POLL = 0.01  # seconds

logger = logging.getLogger(__name__)


class Turns:
    """The turns of this process.

    `working` shares the cores that the process may use with other work, `timing` has them alone, for which it waits.
    Processes on other cores may go on working meanwhile, but may not time: one timing at a time on a host.
    """

    def __init__(self, folder: Path | None = None, longest_wait_s: float = LONGEST_WAIT) -> None:
        """`folder`: where the locks lie, the same for all processes of a host; by default what LOCKS says."""
        self._folder = folder
        self._told = False
        self._longest_wait_s = longest_wait_s
        self._working: ExitStack | None = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Share the cores; `timing` may come within, and gives them up for its duration."""
        self._enter_work()
        try:
            yield
        finally:
            self._leave_work()

    @contextmanager
    def timing(self) -> Iterator[bool]:
        """Have the cores alone; False where they could not be had in time, and are disturbed therefore.

        Where there can be no locks, that is logged once, and nothing is known of other processes.
        """
        worked = self._working is not None
        self._leave_work()  # two that work, and each wait for the other to stop, would wait for ever
        try:
            with ExitStack() as held:
                alone = self._take(held, [TIMING], fcntl.LOCK_EX)
                yield self._take(held, _cores(), fcntl.LOCK_EX) and alone
        finally:
            if worked:
                self._enter_work()

    def _enter_work(self) -> None:
        self._working = ExitStack()
        self._take(self._working, _cores(), fcntl.LOCK_SH)

    def _leave_work(self) -> None:
        if self._working is not None:
            self._working.close()
            self._working = None

    def _take(self, held: ExitStack, names: Collection[str], kind: int) -> bool:
        """Lock them in order, so that no two processes wait for each other; whether all could be had in time."""
        end = time.monotonic() + self._longest_wait_s
        had = True
        for name in sorted(names):
            try:
                descriptor = _opened((self._folder or _folder()) / f"mixq-{name}.lock")
                held.callback(os.close, descriptor)
                had = _locked(descriptor, kind, end) and had
            except OSError as error:
                self._tell(error)
        return had

    def _tell(self, error: OSError) -> None:
        if not self._told:
            logger.warning("timings are not kept apart from other mixq processes on this host: %s", error)
        self._told = True


def _folder() -> Path:
    return Path(os.environ.get(LOCKS) or tempfile.gettempdir())


def _cores() -> list[str]:
    return [f"core{number:04d}" for number in machine.affinity()]


def _opened(path: Path) -> int:
    """A descriptor of the file, which every user of the host may lock."""
    with suppress(FileExistsError):  # a file of another user's may not be opened with O_CREAT in /tmp
        made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
        os.fchmod(made, 0o644)  # whatever the umask is
        os.close(made)
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def _locked(descriptor: int, kind: int, end: float) -> bool:
    """Lock it as soon as that can be; False where it cannot before `end`."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(POLL)
        else:
            return True
