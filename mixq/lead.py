"""Lead: runs a search, alone or with workers, with progress on the terminal.

Whoever leads a study exports, logs and reports, and clears up after workers that died; workers evaluate.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

from mixq.analysis import CutShortError, Patience, guide_job
from mixq.crew import Crew
from mixq.events import trial_values
from mixq.job import SearchJob
from mixq.progress import Bar, Progress
from mixq.searcher.interrupted import Heart
from mixq.searcher.orders import call_off, leader_beat
from mixq.searcher.run import run
from mixq.searcher.stop import Ending, Stop
from mixq.searcher.study import read_trials

POLL, LONGEST_POLL = 0.1, 1.0  # seconds


def run_job(job: SearchJob, stop: Stop, progress: Progress, crew: Crew | None = None) -> None:
    """Search until the budget is spent or a stop is requested, with a bar that shows the best so far.

    The uniform configurations come first: mostly one of them is worth having, long before an analysis is done. A crew
    takes over when its members are ready.
    """
    lead = Lead(job, stop, progress, crew)
    with Heart() as heart, crew or nullcontext():
        heart.beat_by(leader_beat(job.study, job.budget))
        lead.evaluate("starting", stop, queued_only=True)
        guided = not stop.requested and _is_guided(job, progress, stop)
        if crew is not None:
            if guided:
                lead.evaluate("searching", Relieved(stop, crew))
            else:
                call_off(job.study)  # nothing more will be proposed
            lead.follow(crew)
        if guided:
            lead.evaluate("searching", stop)  # after a crew: what it left
        call_off(job.study)
    if stop.requested:
        progress.say("stopped; the same command goes on from here")


@dataclass(frozen=True)
class Relieved:
    """Ends the leader's own evaluations when all of its crew are ready."""

    stop: Ending
    crew: Crew

    @property
    def requested(self) -> bool:
        return self.stop.requested or self.crew.is_ready


@dataclass(frozen=True)
class Lead:
    """A search as its leader runs it."""

    job: SearchJob
    stop: Stop
    progress: Progress
    crew: Crew | None

    def evaluate(self, doing: str, stop: Ending, *, queued_only: bool = False) -> None:
        """In this process."""
        job = self.job
        with self.progress.bar(job.budget.trials, doing, len(job.trials), job.budget.deadline) as bar:
            run(
                *(job.study, job.evaluator, job.choices, job.space, job.budget),
                stop,
                lambda _trial: self._take_in(bar),
                bar.note,
                job.watch,
                queued_only=queued_only,
                turn=job.turn,
                beside=job.history,
                keep=lambda candidate: job.contenders.keep(candidate.config.id, candidate.model),
            )

    def follow(self, crew: Crew) -> None:
        """Take in what the workers find, until none of them is left, nor any trial in flight elsewhere."""
        job, watch, pace = self.job, self.job.lost, Pace()
        with self.progress.bar(job.budget.trials, "searching", len(job.trials), job.budget.deadline) as bar:
            while crew.is_at_work or (watch.running() and not self._is_over):
                if self._is_over:
                    call_off(job.study)
                    crew.dismiss()
                if pace.is_due or crew.has_losses:  # what was finished before a death counts, told of or not
                    pace.went_on(self._take_in(bar))
                crew.tend(len(job.trials))
                time.sleep(POLL)
            self._take_in(bar)

    @property
    def _is_over(self) -> bool:
        return self.stop.requested or self.job.budget.timed_out

    def _take_in(self, bar: Bar) -> bool:
        """Whether there was anything new."""
        known = read_trials(self.job.study)
        if again := self.job.lost.clear_up(known):
            self.progress.warn(f"{again} trial(s), whose process is gone, are tried again")
        before = self.job.best()
        new = self.job.update(known)
        for trial in new:
            self.progress.event("trial", trial_values(trial))
            bar.step(_standing(self.job))
            if trial.state == "failed":
                self.progress.warn(f"trial {trial.number} failed: {trial.reason}")
        best = self.job.best() if new else before
        if best is not None and (before is None or best.config.id != before.config.id):
            self.progress.event("best", trial_values(best))
        return bool(new or again)


@dataclass
class Pace:
    """When to look next at a study: soon after something was new, ever later while nothing is."""

    _wait: float = 0.0
    _next: float = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def went_on(self, something_new: bool) -> None:
        """What the look has shown."""
        self._wait = POLL if something_new else min(2 * max(self._wait, POLL), LONGEST_POLL)
        self._next = time.monotonic() + self._wait


def _is_guided(job: SearchJob, progress: Progress, stop: Stop) -> bool:
    try:
        guide_job(job, progress, Patience(stop, job.budget.deadline).check)
    except CutShortError as error:
        progress.warn(f"{error}; only uniform configurations were tried")
        return False
    return True


def _standing(job: SearchJob) -> str:
    """The best so far, for the bar."""
    best = job.best()
    if best is None or best.evaluation is None:
        return "nothing within the constraints yet"
    found = best.evaluation
    return f"best: {found.speedup.median:.2f}× faster, {found.compression:.2f}× smaller, drop {found.drop:+.4f}"
