"""Opens what a command needs (an evaluator, a search job) and runs a search, with progress on the terminal."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from mixq import atomic, machine
from mixq.array_store import ArrayStore
from mixq.config import LayerScheme, Precision, all_schemes
from mixq.errors import InputError
from mixq.evaluation import Candidate
from mixq.evaluator import Evaluator
from mixq.events import trial_values
from mixq.graph.layers import float_only
from mixq.job import SearchJob
from mixq.progress import Progress
from mixq.runtimes import get_runtime
from mixq.scratch import check_scratch
from mixq.searcher.choices import Choices, make_choices
from mixq.searcher.cost import Profiles, take_profiles
from mixq.searcher.guided import Guide
from mixq.searcher.run import Budget, enqueue, run
from mixq.searcher.samplers import get_sampler
from mixq.searcher.space import SearchSpace
from mixq.searcher.stop import Stop
from mixq.searcher.study import (
    Study,
    fail_interrupted,
    load_profiles,
    load_sensitivity,
    open_study,
    store_profiles,
    store_sensitivity,
    trials_of,
)
from mixq.searcher.trial import Trial
from mixq.searcher.warmstart import analyzed_starts, uniform_starts
from mixq.sensitivity import Sensitivity, pairs
from mixq.sensitivity import analyze as analyze_layers
from mixq.stopwatch import Stopwatch
from mixq.task import Task, load_task
from mixq.tracking import Tracker, default_uri

INT8 = LayerScheme(precision=Precision.INT8)
ANALYSIS_ROWS = 200  # search rows that a search's own analysis looks at, for INT8: it steers, it does not decide
ANALYSIS_MACS = 1e12  # a quarter of a minute on two cores
FEWEST_ROWS = 50
NO_TRACKING = "none"


def open_evaluator(
    task: str | Task, runtime: str, threads: int, progress: Progress, confidence: float | None = None
) -> Evaluator:
    """The evaluator of a task, checked, captured and calibrated: everything that can be refused is refused here."""
    check_scratch()
    loaded = load_task(task) if isinstance(task, str) else task
    evaluator = Evaluator(loaded, get_runtime(runtime), threads, confidence=confidence)
    rows = sum(len(next(iter(batch.values()))) for batch in evaluator.data.calibration)
    evaluator.data.split("search")
    progress.say(f"capturing {task_name(task)} on {runtime} {evaluator.runtime.version}")
    macs = sum(layer.macs for layer in evaluator.graph.layers)
    progress.say(
        f"{len(evaluator.graph.layers)} layers, {macs / 1e6:.1f} M multiply-accumulates; calibrating on {rows} rows"
    )
    for op, count in float_only(evaluator.graph.model).items():
        progress.warn(f"{count} {op} in the model: mixq quantizes no recurrent op; its weights stay float")
    found = evaluator.reference_metrics[loaded.primary]
    progress.say(f"FP32: {evaluator.primary} {found:.4f} on {evaluator.data.split('search').rows} search rows")
    progress.event(
        "captured",
        {
            "model": evaluator.fingerprint,
            "layers": len(evaluator.graph.layers),
            "macs": macs,
            "primary": loaded.primary,
            "metric": found,
        },
    )
    _ = evaluator.quantizer
    for corrupt in evaluator.data.corruptions().values():
        corrupt(evaluator.data.example)  # checked now, used at the end
    return evaluator


def task_name(task: str | Task) -> str:
    return task if isinstance(task, str) else type(task).__name__


def analyze_with_bar(
    evaluator: Evaluator,
    schemes: list[LayerScheme],
    rows: int | None,
    progress: Progress,
    offered: Mapping[str, Container[LayerScheme]] | None = None,
) -> Sensitivity:
    """`mixq.sensitivity.analyze` for the schemes that the runtime can run somewhere, with a bar."""
    runnable = [
        s for s in schemes if any(evaluator.runtime.refusal(s, layer) is None for layer in evaluator.graph.layers)
    ]
    if not runnable:
        raise InputError(f"{evaluator.runtime.name} can run none of {', '.join(map(str, schemes))}; see mixq devices")
    with progress.bar(len(pairs(evaluator, runnable, offered)), "analyzing") as bar:

        def step(_done: int, _total: int, note: str) -> None:
            bar.step(note)

        return analyze_layers(evaluator, runnable, rows=rows, progress=step, offered=offered)


@dataclass(frozen=True)
class Names:
    """What a search and its stores are called. storage (Optuna) and tracking (MLflow): URLs, None for SQLite files."""

    task: str
    study: str
    storage: str | None = None
    tracking: str | None = None


def open_job(
    evaluator: Evaluator,
    space: SearchSpace,
    folder: Path,
    names: Names,
    seed: int,
    budget: Budget,
    progress: Progress,
) -> SearchJob:
    """Make the space concrete, open the study, queue what needs no analysis, start the tracking."""
    choices = make_choices(space, evaluator.graph, evaluator.runtime, evaluator.fingerprint)
    for note in choices.notes:
        progress.warn(f"{note}; left out of the search")
    tracker = None if names.tracking is None else _tracker(names.tracking, folder, names)
    study = open_study(
        names.storage or _local_storage(folder),
        names.study,
        len(space.objectives),
        _identity(evaluator, space),
    )
    if fail_interrupted(study):
        progress.warn("a trial of an earlier run was interrupted; it counts as failed")
    evaluator.keep_in(ArrayStore(folder / "prepared", _prepared_for(evaluator)))
    watch = Stopwatch({"setup": budget.run_s})
    enqueue(study, "uniform", uniform_starts(choices))
    if names.tracking is None:
        tracker = _tracker(default_uri(folder), folder, names)
    if tracker is not None:
        tracker.start_study(names.study, _study_params(evaluator, space, seed))
    earlier = trials_of(study)
    budget = budget.after(earlier)
    job = SearchJob(evaluator, space, choices, study, folder, names.task, seed, budget, tracker, watch, earlier)
    job.sensitivity = load_sensitivity(study)
    job.recall()
    return job


def guide_job(job: SearchJob, progress: Progress) -> None:
    """Analyze, unless the study knows already; from then on its sampler is the space's, and what comes first queued."""
    job.sensitivity = _sensitivity(job.study, job.evaluator, job.choices, job.watch, progress)
    profiles = _profiles(job.study, job.evaluator, job.choices, job.watch)
    guide = Guide(job.choices, job.evaluator.graph, job.sensitivity, job.space.objectives[0], profiles)
    job.study.sampler = get_sampler(job.space.sampler, job.choices, guide, job.seed + len(job.study.trials))
    passed = any(trial.feasible and trial.config.layers_with(Precision.INT8) for trial in job.trials)
    starts = analyzed_starts(job.choices, job.sensitivity, recipes_first=not passed)
    enqueue(job.study, "analyzed", starts)


def _sensitivity(
    study: Study, evaluator: Evaluator, choices: Choices, watch: Stopwatch, progress: Progress
) -> Sensitivity:
    """Of every kind of INT8 that there is to choose: what the study has stored, else analyzed now."""
    known = load_sensitivity(study)
    if known is not None:
        return known
    with watch.measuring("analysis"):
        offered = {layer: {s.untrained for s in unit.schemes} for unit in choices.units for layer in unit.layers}
        int8 = [s for s in all_schemes() if s.precision is Precision.INT8 and any(s in o for o in offered.values())]
        if int8:
            found = analyze_with_bar(evaluator, int8, _analysis_rows(evaluator, int8, offered), progress, offered)
        else:
            found = analyze_with_bar(evaluator, [INT8], ANALYSIS_ROWS, progress)
    store_sensitivity(study, found)
    return found


def _analysis_rows(
    evaluator: Evaluator, schemes: list[LayerScheme], offered: Mapping[str, Container[LayerScheme]]
) -> int:
    """As many as fit the time that an analysis may take; each run is of half the network, on average."""
    macs = sum(layer.macs for layer in evaluator.graph.layers)
    runs = len(pairs(evaluator, schemes, offered))
    return int(min(ANALYSIS_ROWS, max(FEWEST_ROWS, ANALYSIS_MACS / (runs * macs / 2 + 1))))


def _profiles(study: Study, evaluator: Evaluator, choices: Choices, watch: Stopwatch) -> Profiles:
    """The layers' times in each precision: what the study has stored, else taken now."""
    known = load_profiles(study)
    if known is not None:
        return known
    with watch.measuring("profiles"):
        found = take_profiles(evaluator, choices)
    store_profiles(study, found)
    return found


def _local_storage(folder: Path) -> str:
    """A SQLite file in `folder`, which is made for it."""
    path = str(folder.resolve() / "study.db")
    if "?" in path:
        raise InputError(f"a folder with a question mark cannot hold the study: {folder}; give another, or --storage")
    atomic.make_folder(folder)
    return "sqlite:///" + path.replace("{", "{{").replace("}", "}}")  # Optuna formats the URL


def _tracker(uri: str, folder: Path, names: Names) -> Tracker | None:
    """Opened before anything is written where the user named it: a store that is refused leaves nothing behind."""
    if uri == NO_TRACKING:
        return None
    return Tracker(uri, names.study, folder / "mlartifacts" if names.tracking is None else None)


def _study_params(evaluator: Evaluator, space: SearchSpace, seed: int) -> dict[str, object]:
    return {
        "runtime": evaluator.runtime.name,
        "threads": evaluator.threads,
        "seed": seed,
        "primary": str(evaluator.primary),
        "space": space.model_dump(mode="json"),
    }


def _identity(evaluator: Evaluator, space: SearchSpace) -> dict[str, str]:
    """What a study's numbers depend on: it is resumed only where all of this is the same."""
    return {
        "model": evaluator.fingerprint,
        "metric": str(evaluator.primary),
        "search data": evaluator.data.search_fingerprint(),
        "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest()[:16],
        "runtime": f"{evaluator.runtime.name} {evaluator.runtime.version}",
        "threads": str(evaluator.threads),
        "cpu": str(machine.describe()["cpu"]),
    }


def _prepared_for(evaluator: Evaluator) -> str:
    """What the results of recipe steps depend on, besides the steps."""
    runtime = evaluator.runtime
    names = (version("mixq"), version("torch"), evaluator.fingerprint, runtime.name, runtime.version)
    parts = (*names, machine.describe()["cpu"])
    return " ".join(map(str, parts))


def run_job(job: SearchJob, stop: Stop, progress: Progress) -> None:
    """Search until the budget is spent or a stop is requested, with a bar that shows the best so far.

    The uniform configurations come first: mostly one of them is worth having, long before an analysis is done.
    """
    _run(job, stop, progress, "starting", queued_only=True)
    if not stop.requested:
        if job.sensitivity is None and job.budget.timed_out:
            progress.warn("the time is up before the layers were analyzed; only uniform configurations were tried")
        else:
            guide_job(job, progress)
            _run(job, stop, progress, "searching")
    if stop.requested:
        progress.say("stopped; the same command goes on from here")


def _run(job: SearchJob, stop: Stop, progress: Progress, doing: str, *, queued_only: bool = False) -> None:
    with progress.bar(job.budget.trials, doing, len(job.trials), job.budget.deadline) as bar:

        def on_trial(trial: Trial, candidate: Candidate | None) -> None:
            before = job.best()
            job.on_trial(trial, candidate)
            progress.event("trial", trial_values(trial))
            best = job.best()
            if best is not None and (before is None or best.config.id != before.config.id):
                progress.event("best", trial_values(best))
            bar.step(_standing(job))
            if trial.state == "failed":
                progress.warn(f"trial {trial.number} failed: {trial.reason}")

        known = (job.study, job.evaluator, job.choices, job.space, job.budget)
        run(*known, stop, on_trial, bar.note, job.watch, queued_only=queued_only)


def _standing(job: SearchJob) -> str:
    """The best so far, for the bar."""
    best = job.best()
    if best is None or best.evaluation is None:
        return "nothing within the constraints yet"
    found = best.evaluation
    return f"best: {found.speedup.median:.2f}× faster, {found.compression:.2f}× smaller, drop {found.drop:+.4f}"
