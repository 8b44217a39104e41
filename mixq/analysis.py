"""What a search measures before it is guided: how much each layer suffers, and how long its kernels take."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping

from mixq.config import LayerScheme, Precision, all_schemes
from mixq.errors import MixqError
from mixq.evaluator import Evaluator
from mixq.job import SearchJob
from mixq.launch import analyze_with_bar
from mixq.progress import Progress
from mixq.searcher.choices import Choices
from mixq.searcher.cost import take_profiles
from mixq.searcher.guidance import guide_of, planned_starts
from mixq.searcher.run import enqueue, is_queued
from mixq.searcher.samplers import GUIDED, get_sampler
from mixq.searcher.stop import Ending
from mixq.searcher.study import load_profiles, load_sensitivity, store_profiles, store_sensitivity
from mixq.searcher.warmstart import ANALYZED, analyzed_starts
from mixq.sensitivity import Sensitivity, pairs

INT8 = LayerScheme(precision=Precision.INT8)
ANALYSIS_ROWS = 200  # search rows that a search's own analysis looks at, for INT8: it steers, it does not decide
ANALYSIS_MACS = 1e12  # a quarter of a minute on two cores
FEWEST_ROWS = 50
PACED = 5  # layers after which it can be told how long all of them take
DOUBT = 1.25  # how much longer that may seem than it is

Check = Callable[[int, int], None]
"""Told after how many layers of how many; raises CutShortError where the analysis is to end."""


class CutShortError(MixqError):
    """An analysis was ended before it was done."""


class Patience:
    """Ends an analysis when a stop is requested, the time is up, or what is left of it cannot be done in time.

    deadline: a time of time.monotonic().
    """

    def __init__(self, stop: Ending, deadline: float | None) -> None:
        self._stop, self._deadline = stop, deadline
        self._began = 0.0

    def check(self, done: int, total: int) -> None:
        """After `done` of `total` layers. Raises CutShortError, which says why."""
        now = time.monotonic()
        if done == 0:  # what prepares the analysis says nothing of its pace
            self._began = now
        if self._stop.requested:
            raise CutShortError("stopped before the layers were analyzed")
        if self._deadline is None:
            return
        if now >= self._deadline:
            raise CutShortError("the time is up before the layers were analyzed")
        left = _seconds_left(now - self._began, done, total) if done >= PACED else 0.0
        if now + left / DOUBT > self._deadline:
            raise CutShortError(f"the layers' analysis would take {left:.0f} s more, longer than --timeout leaves")


def _seconds_left(spent: float, done: int, total: int) -> float:
    """The deeper a layer lies, the less of the network is run for it, on average down to nothing."""
    return spent * (total / 2 / (done - done**2 / (2 * total)) - 1)


def guide_job(job: SearchJob, progress: Progress, check: Check | None = None) -> None:
    """Analyze, unless the study knows already; from then on its sampler is the space's, and what comes first queued."""
    with job.evaluator.turns.working():
        job.sensitivity = _analyzed(job, progress, check)
        _take_profiles(job)
    study, choices, seed = job.study, job.choices, job.seed + len(job.study.trials)
    guide = guide_of(study, choices, job.evaluator.graph, job.space)
    study.sampler = get_sampler(job.space.sampler, choices, guide, seed)
    if is_queued(study, ANALYZED):
        return
    passed = any(trial.feasible and trial.config.layers_with(Precision.INT8) for trial in job.trials)
    planned = [] if passed else planned_starts(study, choices, guide, seed)
    plans = job.space.sampler == GUIDED
    starts = analyzed_starts(choices, job.sensitivity, recipes_first=not passed, planned=plans)
    enqueue(study, ANALYZED, [*planned, *starts])


def _analyzed(job: SearchJob, progress: Progress, check: Check | None) -> Sensitivity:
    """What the study has stored, else analyzed now."""
    known = load_sensitivity(job.study)
    if known is not None:
        return known
    if check is not None:
        check(0, 1)
    with job.watch.measuring("analysis"):
        found = _analyze(job.evaluator, job.choices, progress, check)
    store_sensitivity(job.study, found)
    return found


def _analyze(evaluator: Evaluator, choices: Choices, progress: Progress, check: Check | None) -> Sensitivity:
    """Of every kind of INT8 that there is to choose, in each layer those that it may have; by the first recipe."""
    recipe = next(iter(choices.recipes.values()))
    offered = {layer: {s.untrained for s in unit.schemes} for unit in choices.units for layer in unit.layers}
    int8 = [s for s in all_schemes() if s.precision is Precision.INT8 and any(s in o for o in offered.values())]
    if not int8:
        return analyze_with_bar(evaluator, [INT8], ANALYSIS_ROWS, progress, recipe=recipe, check=check)
    return analyze_with_bar(evaluator, int8, _rows(evaluator, int8, offered), progress, offered, recipe, check)


def _rows(evaluator: Evaluator, schemes: list[LayerScheme], offered: Mapping[str, Container[LayerScheme]]) -> int:
    """As many as fit the time that an analysis may take; each run is of half the network, on average."""
    macs = sum(layer.macs for layer in evaluator.graph.layers)
    runs = len(pairs(evaluator, schemes, offered))
    return int(min(ANALYSIS_ROWS, max(FEWEST_ROWS, ANALYSIS_MACS / (runs * macs / 2 + 1))))


def _take_profiles(job: SearchJob) -> None:
    """The layers' times in each precision, unless the study knows."""
    if load_profiles(job.study) is None:
        with job.watch.measuring("profiles"):
            store_profiles(job.study, take_profiles(job.evaluator, job.choices))
