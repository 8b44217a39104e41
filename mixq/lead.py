"""Lead: runs a search, alone or with workers, with progress on the terminal.

Whoever leads a study exports, logs and reports, and clears up after workers that died; workers evaluate.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass

from mixq.config import LayerScheme, Precision
from mixq.crew import Crew
from mixq.job import SearchJob
from mixq.launch import analyze_with_bar
from mixq.progress import Bar, Progress
from mixq.searcher.cost import take_profiles
from mixq.searcher.guidance import sampler_of
from mixq.searcher.interrupted import Heart
from mixq.searcher.orders import call_off, leader_beat
from mixq.searcher.run import enqueue, run
from mixq.searcher.stop import Ending, Stop
from mixq.searcher.storage import patiently
from mixq.searcher.study import load_profiles, load_sensitivity, store_profiles, store_sensitivity
from mixq.searcher.warmstart import ANALYZED, analyzed_starts
from mixq.sensitivity import Sensitivity

INT8 = LayerScheme(precision=Precision.INT8)
ANALYSIS_ROWS = 200  # search rows that a search's own analysis looks at, for INT8: it steers, it does not decide
POLL = 0.1  # seconds


def run_job(job: SearchJob, stop: Stop, progress: Progress, crew: Crew | None = None) -> None:
    """Search until the budget is spent or a stop is requested, with a bar that shows the best so far.

    The uniform configurations come first: mostly one of them is worth having, long before an analysis is done. A crew
    takes over when its members are ready.
    """
    lead = Lead(job, stop, progress, crew)
    with Heart() as heart, crew or nullcontext():
        heart.beat_by(leader_beat(job.study))
        lead.evaluate("starting", stop, queued_only=True)
        guided = not stop.requested and _is_guided(job, progress)
        if crew is not None:
            if guided:
                lead.evaluate("searching", Relieved(stop, crew))
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
                keep=lambda candidate: job.contenders.keep(candidate.config.id, candidate.model),
            )

    def follow(self, crew: Crew) -> None:
        """Take in what the workers find, until none of them is left, nor any trial in flight elsewhere."""
        job, watch = self.job, self.job.lost
        with self.progress.bar(job.budget.trials, "searching", len(job.trials), job.budget.deadline) as bar:
            while crew.is_at_work or (patiently(watch.running) and not self._is_over):
                if self._is_over:
                    patiently(lambda: call_off(job.study))
                    crew.dismiss()
                crew.tend(len(job.trials))
                patiently(lambda: self._take_in(bar))
                time.sleep(POLL)
            patiently(lambda: self._take_in(bar))

    @property
    def _is_over(self) -> bool:
        return self.stop.requested or self.job.budget.timed_out

    def _take_in(self, bar: Bar) -> None:
        if again := patiently(self.job.lost.clear_up):
            self.progress.warn(f"{again} trial(s), whose process is gone, are tried again")
        for trial in self.job.update():
            bar.step(_standing(self.job))
            if trial.state == "failed":
                self.progress.warn(f"trial {trial.number} failed: {trial.reason}")


def _is_guided(job: SearchJob, progress: Progress) -> bool:
    if job.sensitivity is None and job.budget.timed_out:
        progress.warn("the time is up before the layers were analyzed; only uniform configurations were tried")
        return False
    guide_job(job, progress)
    return True


def guide_job(job: SearchJob, progress: Progress) -> None:
    """Analyze, unless the study knows already; from then on its sampler is the space's, and what comes first queued."""
    with job.evaluator.turns.working():
        job.sensitivity = _analyzed(job, progress)
        _take_profiles(job)
    seed = job.seed + len(job.study.trials)
    job.study.sampler = sampler_of(job.study, job.choices, job.evaluator.graph, job.space, seed)
    passed = any(trial.feasible and trial.config.layers_with(Precision.INT8) for trial in job.trials)
    enqueue(job.study, ANALYZED, analyzed_starts(job.choices, job.sensitivity, recipes_first=not passed))


def _analyzed(job: SearchJob, progress: Progress) -> Sensitivity:
    """Of every kind of INT8 that there is to choose: what the study has stored, else analyzed now."""
    known = load_sensitivity(job.study)
    if known is not None:
        return known
    with job.watch.measuring("analysis"):
        schemes = dict.fromkeys(scheme.untrained for unit in job.choices.units for scheme in unit.schemes)
        int8 = [scheme for scheme in schemes if scheme.precision is Precision.INT8]
        found = analyze_with_bar(job.evaluator, int8 or [INT8], ANALYSIS_ROWS, progress)
    store_sensitivity(job.study, found)
    return found


def _take_profiles(job: SearchJob) -> None:
    """The layers' times in each precision, unless the study knows."""
    if load_profiles(job.study) is None:
        with job.watch.measuring("profiles"):
            store_profiles(job.study, take_profiles(job.evaluator, job.choices))


def _standing(job: SearchJob) -> str:
    """The best so far, for the bar."""
    best = job.best()
    if best is None or best.evaluation is None:
        return "nothing within the constraints yet"
    found = best.evaluation
    return f"best: {found.speedup.median:.2f}× faster, {found.compression:.2f}× smaller, drop {found.drop:+.4f}"
