"""What the command line does, as functions: each returns values, so that a notebook or a job can do the same."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixq import atomic, machine, report
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.errors import InputError
from mixq.evaluator import Candidate, Evaluation, Evaluator
from mixq.exporter import export as export_candidate
from mixq.job import SearchJob, sensitivity_frame
from mixq.progress import Progress
from mixq.runtimes import get_runtime
from mixq.searcher.choices import Choices, make_choices
from mixq.searcher.guided import Guide
from mixq.searcher.run import Budget, enqueue, run
from mixq.searcher.samplers import get_sampler
from mixq.searcher.space import SearchSpace, load_space
from mixq.searcher.stop import stop_on_signals
from mixq.searcher.study import fail_interrupted, load_sensitivity, open_study, store_sensitivity
from mixq.searcher.trial import Trial
from mixq.searcher.warmstart import warm_start
from mixq.sensitivity import Sensitivity
from mixq.sensitivity import analyze as analyze_layers
from mixq.task import Task, load_task
from mixq.tracking import Tracker, default_uri
from mixq.verifier import Verification
from mixq.verifier import verify as verify_folder

ANALYSIS_ROWS = 200  # search rows that a search's own analysis looks at, for INT8: it steers, it does not decide
ANALYZED = (LayerScheme(precision=Precision.INT8), LayerScheme(precision=Precision.BF16))
NO_TRACKING = "none"


@dataclass(frozen=True)
class SearchResult:
    """What a search found. best is None where nothing met the constraints: then FP32 lies in `folder`."""

    summary: Mapping[str, object]
    best: Trial | None
    trials: Sequence[Trial]
    folder: Path

    @property
    def feasible(self) -> bool:
        return self.best is not None


@dataclass(frozen=True)
class EvaluationReport:
    """One configuration, measured: on the search split, on the holdout split, under corruptions (FP32 beside it)."""

    evaluation: Evaluation
    holdout: Mapping[str, object]
    robustness: Mapping[str, Mapping[str, float]]


def analyze(
    task: str | Task,
    *,
    runtime: str = "openvino",
    threads: int = 1,
    schemes: Sequence[LayerScheme] = ANALYZED,
    rows: int | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> Sensitivity:
    """Rank the layers by how much each scheme, given to one alone, hurts; all measured on the runtime.

    rows: of the search split (None: all). With `out`, sensitivity.csv and sensitivity.png are written there. Raises
    InputError for what the task, the model or the arguments get wrong.
    """
    progress = Progress(quiet)
    folder = None if out is None else _writable(out)
    evaluator = open_evaluator(task, runtime, threads, progress)
    found = _analyze(evaluator, list(schemes), rows, progress)
    if folder is not None:
        frame = sensitivity_frame(found)
        atomic.write_text(folder / "sensitivity.csv", frame.to_csv(index=False))
        report.plot_sensitivity(folder / "sensitivity.png", frame, evaluator.graph.layer_names)
    return found


def search(
    task: str | Task,
    space: str | Path | SearchSpace,
    out: str | Path,
    *,
    max_drop: float | None = None,
    trials: int = 100,
    timeout: float | None = None,
    runtime: str = "openvino",
    threads: int = 1,
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    tracking: str | None = None,
    sampler: str | None = None,
    quiet: bool = False,
) -> SearchResult:
    """Find the best mixed-precision configuration of `space` for this task on this machine; resume where there is one.

    max_drop (in the primary metric's units) and sampler replace the space's own. trials counts those of earlier runs
    of the study; timeout in seconds. storage: Optuna URL, by default a SQLite file in `out`; tracking: MLflow URI,
    by default a SQLite file in `out`, "none" for none. Ends after the trial in flight on Ctrl-C or SIGTERM. Writes
    the files that the README lists, all of them current after every trial. Raises InputError for bad input.
    """
    began, progress = time.monotonic(), Progress(quiet)
    if trials < 1 or (timeout is not None and timeout <= 0):
        raise InputError(f"trials must be at least 1 and timeout positive, got {trials} and {timeout}")
    wanted = _space(space, max_drop, sampler)
    folder = _writable(out)
    evaluator = open_evaluator(task, runtime, threads, progress)
    evaluator.data.warn_if_splits_are_equal()
    choices = make_choices(wanted, evaluator.graph, evaluator.runtime, evaluator.fingerprint)
    for note in choices.notes:
        progress.warn(f"{note}; left out of the search")
    job = _open_job(evaluator, wanted, choices, folder, task, study, storage, seed, began, tracking, progress)
    budget = Budget(trials, began, None if timeout is None else began + timeout)
    _run(job, budget, progress)
    summary = job.finish()
    return SearchResult(summary, job.best(), job.trials, folder)


def evaluate(
    task: str | Task,
    config: str | Path | MixedPrecisionConfig,
    *,
    runtime: str = "openvino",
    threads: int = 1,
    quiet: bool = False,
) -> EvaluationReport:
    """Measure one configuration. Raises InputError where it is not one of this task's model."""
    loaded = _config(config)
    evaluator = open_evaluator(task, runtime, threads, Progress(quiet))
    candidate = evaluator.prepare(loaded)
    robustness = {
        "fp32": evaluator.robustness(evaluator.reference),
        "config": evaluator.robustness(candidate),
    }
    return EvaluationReport(evaluator.evaluate(candidate), evaluator.holdout(candidate), robustness)


def export(
    task: str | Task,
    config: str | Path | MixedPrecisionConfig,
    out: str | Path,
    *,
    runtime: str = "openvino",
    threads: int = 1,
    quiet: bool = False,
) -> Path:
    """Lower and measure one configuration and write model, configuration and certificate into `out`; the folder."""
    loaded, folder = _config(config), _writable(out)
    evaluator = open_evaluator(task, runtime, threads, Progress(quiet))
    candidate = evaluator.prepare(loaded)
    evaluation = evaluator.evaluate(candidate)
    return export_candidate(evaluator, candidate, evaluation, folder, {"holdout": evaluator.holdout(candidate)})


def verify(folder: str | Path) -> Verification:
    """Check an exported folder: hashes, ONNX checker, outputs on the stored probe, kernel audit. Needs no task."""
    return verify_folder(folder)


def open_evaluator(task: str | Task, runtime: str, threads: int, progress: Progress) -> Evaluator:
    """The evaluator of a task, checked, captured and calibrated: everything that can be refused is refused here."""
    loaded = load_task(task) if isinstance(task, str) else task
    evaluator = Evaluator(loaded, get_runtime(runtime), threads)
    rows = sum(len(next(iter(batch.values()))) for batch in evaluator.data.calibration)
    evaluator.data.split("search")
    progress.say(f"capturing {task_name(task)} on {runtime} {evaluator.runtime.version}")
    macs = sum(layer.macs for layer in evaluator.graph.layers)
    progress.say(
        f"{len(evaluator.graph.layers)} layers, {macs / 1e6:.1f} M multiply-accumulates; calibrating on {rows} rows"
    )
    found = evaluator.reference_metrics[loaded.primary]
    progress.say(f"FP32: {loaded.primary} {found:.4f} on {evaluator.data.split('search').rows} search rows")
    _ = evaluator.statistics
    return evaluator


def task_name(task: str | Task) -> str:
    return task if isinstance(task, str) else type(task).__name__


def _writable(out: str | Path) -> Path:
    atomic.check_writable(out)
    return Path(out)


def _config(config: str | Path | MixedPrecisionConfig) -> MixedPrecisionConfig:
    return config if isinstance(config, MixedPrecisionConfig) else MixedPrecisionConfig.load(config)


def _space(space: str | Path | SearchSpace, max_drop: float | None, sampler: str | None) -> SearchSpace:
    loaded = space if isinstance(space, SearchSpace) else load_space(space)
    content = loaded.model_dump()
    if max_drop is not None:
        content["constraints"]["max_drop"] = max_drop
    if sampler is not None:
        content["sampler"] = sampler
    try:
        return SearchSpace.model_validate(content)
    except ValueError as error:
        raise InputError(f"--max-drop {max_drop} or --sampler {sampler} cannot be used: {error}") from None


def _analyze(
    evaluator: Evaluator,
    schemes: list[LayerScheme],
    rows: int | None,
    progress: Progress,
) -> Sensitivity:
    runnable = [
        s for s in schemes if any(evaluator.runtime.refusal(s, layer.op) is None for layer in evaluator.graph.layers)
    ]
    with progress.bar(len(runnable) * len(evaluator.graph.layers), "analyzing") as bar:
        return analyze_layers(evaluator, runnable, rows=rows, progress=lambda _done, _total, note: bar.step(note))


def _open_job(
    evaluator: Evaluator,
    space: SearchSpace,
    choices: Choices,
    folder: Path,
    task: str | Task,
    study_name: str | None,
    storage: str | None,
    seed: int,
    began: float,
    tracking: str | None,
    progress: Progress,
) -> SearchJob:
    """Open the study, analyze unless it knows already, start the tracking."""
    name = study_name or task_name(task).rpartition(":")[2]
    url = storage or f"sqlite:///{folder.resolve() / 'study.db'}"
    study = open_study(url, name, len(space.objectives), _identity(evaluator, space), None)
    if fail_interrupted(study):
        progress.warn("a trial of an earlier run was interrupted; it counts as failed")
    sensitivity, seconds = load_sensitivity(study), {"setup": time.monotonic() - began}
    if sensitivity is None:
        start = time.monotonic()
        sensitivity = _analyze(evaluator, [ANALYZED[0]], ANALYSIS_ROWS, progress)
        seconds["analysis"] = time.monotonic() - start
        store_sensitivity(study, sensitivity)
    guide = Guide(choices, evaluator.graph, sensitivity, space.objectives[0])
    study.sampler = get_sampler(space.sampler, choices, guide, seed + len(study.trials))
    enqueue(study, warm_start(choices, sensitivity))
    tracker = _tracker(tracking, folder, name, evaluator, space, seed)
    job = SearchJob(
        evaluator, space, choices, study, sensitivity, folder, task_name(task), seed, began, tracker, seconds
    )
    job.recall()
    return job


def _tracker(
    uri: str | None, folder: Path, name: str, evaluator: Evaluator, space: SearchSpace, seed: int
) -> Tracker | None:
    if uri == NO_TRACKING:
        return None
    local = uri is None
    tracker = Tracker(uri or default_uri(folder), name, folder / "mlartifacts" if local else None)
    params = {
        "runtime": evaluator.runtime.name,
        "threads": evaluator.threads,
        "seed": seed,
        "space": space.model_dump(mode="json"),
    }
    tracker.start_study(name, params)
    return tracker


def _identity(evaluator: Evaluator, space: SearchSpace) -> dict[str, str]:
    """What a study's numbers depend on: it is resumed only where all of this is the same."""
    return {
        "model": evaluator.fingerprint,
        "metric": evaluator.task.primary,
        "search data": evaluator.data.search_fingerprint(),
        "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest()[:16],
        "runtime": f"{evaluator.runtime.name} {evaluator.runtime.version}",
        "threads": str(evaluator.threads),
        "cpu": str(machine.describe()["cpu"]),
    }


def _run(job: SearchJob, budget: Budget, progress: Progress) -> None:
    done = len(job.trials)
    with stop_on_signals() as stop, progress.bar(budget.trials, "searching", done, budget.deadline) as bar:

        def on_trial(trial: Trial, candidate: Candidate | None) -> None:
            job.on_trial(trial, candidate)
            bar.step(_standing(job))
            if trial.state == "failed":
                progress.warn(f"trial {trial.number} failed: {trial.reason}")

        run(
            job.study,
            job.evaluator,
            job.choices,
            job.space.constraints,
            job.space.objectives,
            job.space.sampler,
            budget,
            stop,
            on_trial,
            bar.note,
        )
        if stop.requested:
            progress.say("stopped; the same command goes on from here")


def _standing(job: SearchJob) -> str:
    """The best so far, for the bar."""
    best = job.best()
    if best is None or best.evaluation is None:
        return "nothing within the constraints yet"
    found = best.evaluation
    return f"best: {found.speedup.median:.2f}× faster, {found.compression:.2f}× smaller, drop {found.drop:+.4f}"
