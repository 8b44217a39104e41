"""Crew: the worker processes that a search starts on its own host, each on its share of the cores."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType

from mixq import machine
from mixq.errors import InputError
from mixq.progress import Progress
from mixq.urls import STORAGE

LEADER = "MIXQ_LEADER"  # the process whose end is the worker's too
MOST_DEATHS = 3  # in a row, with no trial finished between them
REFUSED = 2  # exit code of what is not mended by trying again


@dataclass
class Crew:
    """`size` workers on a study, as a context; those that die are replaced. threads: of a timing.

    Each has a share of the cores for itself as long as there are enough of them. None are alive afterwards.
    """

    task: str
    study: str
    storage: str
    size: int
    threads: int
    progress: Progress
    _members: list[subprocess.Popen[bytes] | None] = field(default_factory=list)
    _deaths: int = 0
    _finished: int = 0
    _dismissed: bool = False

    def __enter__(self) -> Crew:
        self._members = [self._started(number) for number in range(self.size)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._alive():
            member.kill()
        for member in self._alive():
            with member:  # closes its output
                member.wait()

    @property
    def is_ready(self) -> bool:
        """Whether all members can evaluate, as each says on its standard output, or have ended."""
        return all(member.stdout and select.select([member.stdout], [], [], 0)[0] for member in self._alive())

    @property
    def is_at_work(self) -> bool:
        """Whether any is left, as of when they were last tended."""
        return bool(self._alive())

    @property
    def has_losses(self) -> bool:
        """Whether any has ended since they were last tended."""
        return any(member.poll() is not None for member in self._alive())

    def dismiss(self) -> None:
        """They are to leave after the trial in flight, and are not replaced any more."""
        members = [] if self._dismissed else self._alive()
        self._dismissed = True
        for member in members:
            with suppress(ProcessLookupError):
                member.send_signal(signal.SIGTERM)

    def tend(self, finished: int) -> None:
        """Let go of those that ended, replace those that died. finished: trials of the study so far."""
        if finished > self._finished:
            self._finished, self._deaths = finished, 0
        for number, member in enumerate(self._members):
            code = None if member is None else member.poll()
            if member is None or code is None:
                continue
            with member:
                self._members[number] = None
            if code and not self._dismissed:
                self._replace(number, code)

    def _replace(self, number: int, code: int) -> None:
        if code == REFUSED:
            raise InputError(f"worker {number + 1} cannot work; it says why above")
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            self.progress.warn(f"worker {number + 1} died again ({_said(code)}); it is not replaced any more")
            return
        self.progress.warn(f"worker {number + 1} died ({_said(code)}); another one takes its place")
        self._members[number] = self._started(number)

    def _started(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mixq", "worker", self.task, "--study", self.study, "--quiet"]
        environment = {**os.environ, STORAGE: self.storage, LEADER: str(os.getpid())}
        with _on(machine.share_of_cores(number, self.size, self.threads)):
            # The task is the one that this process runs itself.
            return subprocess.Popen(  # noqa: S603
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )

    def _alive(self) -> Sequence[subprocess.Popen[bytes]]:
        return [member for member in self._members if member is not None]


def _said(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


@contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """This thread on these cores: a process that is started has those of the thread that starts it."""
    before = machine.affinity()
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
