"""Opens what a command needs: an evaluator, a search job."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixq import atomic
from mixq.array_store import ArrayStore
from mixq.config import LayerScheme, RecipeStep
from mixq.errors import InputError
from mixq.evaluator import Evaluator
from mixq.graph.layers import float_only
from mixq.identity import identity_of, prepared_for
from mixq.job import SearchJob
from mixq.progress import Progress
from mixq.runtimes import get_runtime
from mixq.scratch import check_scratch
from mixq.searcher.choices import make_choices
from mixq.searcher.history import History
from mixq.searcher.interrupted import Watch
from mixq.searcher.orders import Settings, take_the_lead
from mixq.searcher.run import Budget, enqueue
from mixq.searcher.space import SearchSpace
from mixq.searcher.storage import sqlite_file, turn_at, turn_if_any
from mixq.searcher.study import load_sensitivity, open_study
from mixq.searcher.warmstart import uniform_starts
from mixq.sensitivity import Sensitivity, pairs
from mixq.sensitivity import analyze as analyze_layers
from mixq.stopwatch import Stopwatch
from mixq.task import Task, load_task
from mixq.tracking import Tracker, default_uri

PREPARED = "prepared"  # the folder of what long recipe steps and trainings made
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
    with evaluator.watch.measuring("capture"):
        _ = evaluator.graph
    macs = sum(layer.macs for layer in evaluator.graph.layers)
    progress.say(
        f"{len(evaluator.graph.layers)} layers, {macs / 1e6:.1f} M multiply-accumulates; calibrating on {rows} rows"
    )
    for op, count in float_only(evaluator.graph.model).items():
        progress.warn(f"{count} {op} in the model: mixq quantizes no recurrent op; its weights stay float")
    with evaluator.watch.measuring("FP32"):
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
    with evaluator.watch.measuring("statistics"):
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
    recipe: tuple[RecipeStep, ...] = (),
    check: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """`mixq.sensitivity.analyze` for the schemes that the runtime can run somewhere, with a bar.

    check: told before each layer how many are done, of how many; what it raises ends the analysis.
    """
    runnable = [
        s for s in schemes if any(evaluator.runtime.refusal(s, layer) is None for layer in evaluator.graph.layers)
    ]
    if not runnable:
        raise InputError(f"{evaluator.runtime.name} can run none of {', '.join(map(str, schemes))}; see mixq devices")
    with progress.bar(len(pairs(evaluator, runnable, offered)), "analyzing") as bar:

        def step(done: int, total: int, note: str) -> None:
            if check is not None:
                check(done, total)
            bar.step(note)

        return analyze_layers(evaluator, runnable, recipe, rows, step, offered)


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
    workers: int = 1,
) -> SearchJob:
    """Make the space concrete, open the study, queue what needs no analysis, start the tracking.

    What an earlier run left half-way is queued again; what it did not get to log is logged.
    """
    choices = make_choices(space, evaluator.graph, evaluator.runtime, evaluator.fingerprint)
    for note in choices.notes:
        progress.warn(f"{note}; left out of the search")
    tracker = None if names.tracking is None else _tracker(names.tracking, folder, names)
    storage = storage_of(names.storage, folder)
    study = open_study(storage, names.study, len(space.objectives), identity_of(evaluator, space))
    turn = turn_at(storage, names.study) if workers > 1 else turn_if_any(storage, names.study)
    history = History(study)
    earlier = history.update()
    budget = budget.after(earlier)
    content = space.model_dump(mode="json")
    settings = Settings(content, evaluator.runtime.name, evaluator.threads, seed, str(folder.resolve()))
    lost = Watch(study, turn=turn)
    lost.look()
    take_the_lead(study, settings, budget, turn, progress.warn)
    if interrupted := lost.clear_up():
        progress.warn(f"{interrupted} of an earlier run's trials were interrupted; they are tried again")
    evaluator.keep_in(ArrayStore(folder / PREPARED, prepared_for(evaluator)))
    named = evaluator.watch.seconds
    watch = Stopwatch({**named, "setup": budget.run_s - sum(named.values())})
    enqueue(study, "uniform", uniform_starts(choices))
    with watch.measuring("logging"):
        if names.tracking is None:
            tracker = _tracker(default_uri(folder), folder, names)
        if tracker is not None:
            tracker.start_study(names.study, _study_params(evaluator, space, seed))
            for trial in earlier:  # those that a killed run did not get to
                tracker.log_trial(trial)
    job = SearchJob(evaluator, space, choices, study, folder, names.task, seed, budget, tracker, watch, history, lost)
    job.turn, job.workers = turn, workers
    job.sensitivity = load_sensitivity(study)
    job.recall()
    return job


def storage_of(url: str | None, folder: Path) -> str:
    """The URL of the study's storage: by default a SQLite file in `folder`. For one in there, it is made."""
    path = None if url is None else sqlite_file(url)
    if path is not None and path.absolute().is_relative_to(folder.absolute()):
        atomic.make_folder(path.parent)
    return url or local_storage(folder)


def local_storage(folder: Path) -> str:
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
