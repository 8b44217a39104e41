"""What the command line does, as functions: each returns values, so that a notebook or a job can do the same."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixq import atomic, report
from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.crew import Crew
from mixq.ending import finish
from mixq.errors import InputError
from mixq.evaluation import Evaluation
from mixq.events import Events
from mixq.exporter import export as export_candidate
from mixq.launch import Names, analyze_with_bar, open_evaluator, open_job, storage_of, task_name
from mixq.lead import run_job
from mixq.progress import Progress
from mixq.searcher.run import Budget
from mixq.searcher.space import SearchSpace, check_space, load_space
from mixq.searcher.stop import stop_on_signals
from mixq.searcher.storage import check_shared
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity
from mixq.task import Task
from mixq.urls import redacted
from mixq.verifier import Verification
from mixq.verifier import verify as verify_folder
from mixq.worker import work as work_on

ANALYZED = (LayerScheme(precision=Precision.INT8), LayerScheme(precision=Precision.BF16))


SEEDS = 2**31  # samplers take 32 bits, and a resumed search adds its number of trials
LONGEST_STUDY = 512  # characters: what Optuna's tables hold


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
    if rows is not None and rows < 1:
        raise InputError(f"rows must be at least 1, got {rows}")
    progress = Progress(quiet)
    folder = None if out is None else _writable(out)
    evaluator = open_evaluator(task, runtime, threads, progress)
    found = analyze_with_bar(evaluator, list(schemes), rows, progress)
    if folder is not None:
        frame = found.frame()
        atomic.write_text(folder / "sensitivity.csv", frame.to_csv(index=False))
        report.plot_sensitivity(folder / "sensitivity.png", frame, evaluator.graph.layer_names)
    return found


def search(
    task: str | Task,
    space: str | Path | SearchSpace,
    out: str | Path,
    *,
    max_drop: float | None = None,
    confidence: float | None = None,
    trials: int = 100,
    timeout: float | None = None,
    runtime: str = "openvino",
    threads: int = 1,
    seed: int = 0,
    study: str | None = None,
    storage: str | None = None,
    tracking: str | None = None,
    sampler: str | None = None,
    workers: int = 1,
    quiet: bool = False,
    events: Events | None = None,
) -> SearchResult:
    """Find the best mixed-precision configuration of `space` for this task on this machine; resume where there is one.

    max_drop (in the primary metric's units), confidence (that the drop on such data is within it, above ½ and below 1)
    and sampler replace the space's own. trials counts those of earlier runs of the study; timeout: seconds after which
    nothing new is begun (holdout, robustness and report follow). storage: Optuna URL, by default a SQLite file in
    `out`; tracking: MLflow URI, by default a SQLite file in `out`, "none" for none. workers: processes on this host
    that evaluate; `work` joins more from anywhere. Ends after the trials in flight on Ctrl-C or SIGTERM. Writes the
    files that the README lists, all of them current after every trial. Raises InputError for bad input, and where
    another search leads the study. events: told what happens while it does ("started", "captured", "trial", "best",
    "warning").
    """
    began, progress = time.monotonic(), Progress(quiet, events)
    if trials < 1 or not 0 <= seed < SEEDS:
        raise InputError(f"trials must be at least 1 and seed at least 0 and below {SEEDS}, got {trials} and {seed}")
    _check_names(study=study, storage=storage, tracking=tracking)
    if timeout is not None and not 0 < timeout < math.inf:
        raise InputError(f"timeout must be a positive number of seconds, got {timeout}")
    wanted = _space(space, max_drop, confidence, sampler)
    _check_workers(workers, task, storage)
    folder = _writable(out)
    started = {"task": task_name(task), "out": str(out), "runtime": runtime, "threads": threads}
    progress.event("started", {**started, "workers": workers, "seed": seed, "trials": trials, "timeout": timeout})
    evaluator = open_evaluator(task, runtime, threads, progress, wanted.constraints.confidence)
    evaluator.data.warn_if_splits_are_equal()
    names = Names(task_name(task), study or task_name(task).rpartition(":")[2], storage, tracking)
    budget = Budget(trials, began, None if timeout is None else began + timeout)
    with stop_on_signals() as stop:
        job = open_job(evaluator, wanted, folder, names, seed, budget, progress, workers)
        store = storage_of(storage, folder)
        crew = None if workers == 1 else Crew(names.task, names.study, store, workers, threads, progress)
        run_job(job, stop, progress, crew)
        summary = finish(job, hurry=stop.requested)
    return SearchResult(summary, job.best(), job.trials, folder)


def work(
    task: str | Task,
    study: str,
    storage: str,
    *,
    out: str | Path | None = None,
    wait: float = 0.0,
    quiet: bool = False,
) -> int:
    """Evaluate configurations of a study that `search` leads, here or on another host; the number of finished trials.

    Ends when the study has all its trials, when the search ends, and after the trial in flight on Ctrl-C or SIGTERM.
    out: the search's folder, where it is not on this host but can be reached (by default nothing is shared but the
    study, and the search makes the best model again from its configuration). wait: seconds, at most, until a search
    leads the study. Raises InputError for bad input, and where this host's CPU is not the one whose latencies the study
    compares.
    """
    _check_names(study=study, storage=storage)
    if not 0 <= wait < math.inf:
        raise InputError(f"wait must be a number of seconds, 0 or more, got {wait}")
    return work_on(task, study, storage, None if out is None else _writable(out), Progress(quiet), wait)


def _check_workers(workers: int, task: str | Task, storage: str | None) -> None:
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    if workers > 1 and os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError(f"workers={workers} and torchrun both start processes; give one of them")
    if workers > 1 and not isinstance(task, str):
        raise InputError(
            f"workers={workers} are processes of their own, which need the task as 'file.py:Class' or "
            f"'package.module:Class', got an object of {type(task).__name__}"
        )
    if workers > 1 and storage is not None:
        check_shared(storage)


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
    evaluation = replace(evaluator.evaluate(candidate), kernels=evaluator.profile(candidate))
    return EvaluationReport(evaluation, evaluator.holdout(candidate), robustness)


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
    evaluation = replace(evaluator.evaluate(candidate), kernels=evaluator.profile(candidate))
    return export_candidate(evaluator, candidate, evaluation, folder, {"holdout": evaluator.holdout(candidate)})


def verify(folder: str | Path) -> Verification:
    """Check an exported folder: hashes, ONNX checker, outputs on the stored probe, kernel audit. Needs no task."""
    return verify_folder(folder)


def _check_names(**names: str | None) -> None:
    for name, value in names.items():
        if value is not None and not (value.strip() and value.isprintable()):
            raise InputError(f"--{name} must be printable text, got {redacted(value)!r}; leave it out for its default")
    if len(names["study"] or "") > LONGEST_STUDY:
        raise InputError(f"--study must have at most {LONGEST_STUDY} characters, got {len(names['study'] or '')}")


def _writable(out: str | Path) -> Path:
    if not str(out).strip():
        raise InputError("--out must name a folder, got an empty text; give . for the current one")
    atomic.check_writable(out)
    return Path(out)


def _config(config: str | Path | MixedPrecisionConfig) -> MixedPrecisionConfig:
    return config if isinstance(config, MixedPrecisionConfig) else MixedPrecisionConfig.load(config)


def _space(
    space: str | Path | SearchSpace, max_drop: float | None, confidence: float | None, sampler: str | None
) -> SearchSpace:
    loaded = space if isinstance(space, SearchSpace) else load_space(space)
    content = loaded.model_dump()
    if max_drop is not None:
        content["constraints"]["max_drop"] = max_drop
    if confidence is not None:
        content["constraints"]["confidence"] = confidence
    if sampler is not None:
        content["sampler"] = sampler
    return check_space(content, "the search space, with --max-drop, --confidence and --sampler")
