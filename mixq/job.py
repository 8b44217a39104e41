"""SearchJob: one search with its folder and its tracking, kept current after every trial (its end: `ending.py`)."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from mixq import atomic, machine, report
from mixq.certificate import CERTIFICATE, DATA, MODEL, Certificate, FileMark
from mixq.config import Precision
from mixq.contenders import CONTENDERS, Contenders, sha256
from mixq.errors import InputError
from mixq.evaluation import Candidate, Evaluation
from mixq.evaluator import Evaluator
from mixq.exporter import export
from mixq.graph import large
from mixq.report.tables import is_fp32
from mixq.report.wall_time import seconds_of
from mixq.searcher.choices import Choices
from mixq.searcher.history import History
from mixq.searcher.interrupted import Watch
from mixq.searcher.objective import EQUAL, best_of, cautious_value, violations
from mixq.searcher.run import Budget
from mixq.searcher.space import SearchSpace
from mixq.searcher.storage import Turn
from mixq.searcher.study import (
    Frozen,
    Study,
    load_gains,
    load_holdout,
    load_measured_anew,
    store_holdout,
    store_measured_anew,
)
from mixq.searcher.trial import Trial
from mixq.sensitivity import Sensitivity
from mixq.stopwatch import Stopwatch
from mixq.tracking import Tracker

Seconds = dict[str, float]

HOLDOUT_SHARE = 0.05  # of a search's time at most for looking at the holdout split before the end


@dataclass
class SearchJob:
    """What is known while a search runs: `update` takes in what the study has."""

    evaluator: Evaluator
    space: SearchSpace
    choices: Choices
    study: Study
    folder: Path
    task_name: str
    seed: int
    budget: Budget
    tracker: Tracker | None
    watch: Stopwatch
    history: History
    lost: Watch
    sensitivity: Sensitivity | None = None
    exported_id: str | None = None
    holdouts: int = 0
    workers: int = 1
    turn: Turn = nullcontext
    measured_anew: dict[str, tuple[Evaluation, str]] = field(default_factory=dict)

    @property
    def trials(self) -> list[Trial]:
        """Those of the study that were taken in."""
        return self.history.trials

    @property
    def contenders(self) -> Contenders:
        return Contenders(self.folder / CONTENDERS)

    def best(self) -> Trial | None:
        """The best feasible trial that beats FP32 in the first objective, or FP32's own; None: nothing is feasible."""
        found = best_of(self._as_exported(), self.space.objectives[0])
        if found is None or found.evaluation is None or is_fp32(found):
            return found
        if cautious_value(found.evaluation, self.space.objectives[0]) < 1:
            return found
        return next((trial for trial in self.trials if trial.feasible and is_fp32(trial)), None)

    def _as_exported(self) -> list[Trial]:
        """The trials; those whose bytes could not be made again with what others of the same measured."""
        return [self._anew(trial, self.measured_anew.get(trial.config.id)) for trial in self.trials]

    def _anew(self, trial: Trial, found: tuple[Evaluation, str] | None) -> Trial:
        if found is None or trial.evaluation is None:
            return trial
        evaluation, digest = found
        beyond = tuple(violations(evaluation, self.space.constraints).items())
        return replace(trial, evaluation=evaluation, violations=beyond, model_sha256=digest)

    def update(self, trials: Frozen | None = None) -> list[Trial]:
        """Take in the trials that were finished since the last time, whoever evaluated them; these.

        trials: all of the study, where they were just read.
        """
        new = self.history.update(trials)
        for trial in new:
            with self.watch.measuring("logging"):
                if self.tracker is not None:
                    self.tracker.log_trial(trial)
        if any(trial.feasible for trial in new):
            self.ensure_exported()
            # With a crew at the end only: who works on all cores keeps every worker from timing.
            if self.workers == 1 and self._holdout_s() <= HOLDOUT_SHARE * self.budget.run_s:
                self.hold_out()
        if new:
            self.write_tables()
        return new

    def ensure_exported(self) -> None:
        """The best so far lies on disk, whole; FP32 where nothing is feasible."""
        with self.evaluator.turns.working():
            while (best := self.best()) is not None and best.config.id != self.exported_id:
                candidate = self._measured_candidate(best)
                if candidate is None:
                    self._measure_anew(best)  # and then it may not be the best any more
                elif best.evaluation is not None:
                    self.export(candidate, best.evaluation)
                    self._forget_beaten(best)
            if best is None:
                reference = self.evaluator.reference
                measured = self.evaluator.evaluate(reference)
                self.export(reference, replace(measured, kernels=self.evaluator.profile(reference)))

    def _measured_candidate(self, best: Trial) -> Candidate | None:
        """The bytes that were measured; None where they are not at hand and cannot be made again."""
        kept = self.contenders.load(best.config.id, best.model_sha256)
        if kept is not None:
            return Candidate(best.config, kept, self.evaluator.runtime.options(best.config))
        made = self.evaluator.prepare(best.config)
        return made if sha256(made.model) == best.model_sha256 else None

    def _measure_anew(self, best: Trial) -> None:
        """Other bytes of the same configuration, as another machine or another start of training makes them."""
        candidate = self.evaluator.prepare(best.config)
        evaluation = self.evaluator.evaluate(candidate)
        digest = self.contenders.keep(best.config.id, candidate.model)
        store_measured_anew(self.study, evaluation, digest)
        self.measured_anew[best.config.id] = evaluation, digest

    def _forget_beaten(self, best: Trial) -> None:
        """Keep the bytes of those only that may still become the best: about as fast or small as it is."""
        objective = self.space.objectives[0]
        limit = (1 + EQUAL[objective]) * cautious_value(best.evaluation, objective) if best.evaluation else 0.0
        found = [(trial.config.id, trial.evaluation) for trial in self.trials if trial.model_sha256]
        self.contenders.forget({name for name, e in found if e is None or cautious_value(e, objective) > limit})

    def _holdout_s(self) -> float:
        """Seconds spent on the holdout split if it is looked at now, as far as they can be known."""
        spent = self.watch.seconds.get("holdout", 0.0)
        if self.holdouts:
            return spent + spent / self.holdouts
        # FP32 has to be run there too; on the search split that was done before.
        known = (trial.phases.get("metric", 0.0) for trial in self.trials if not is_fp32(trial))
        return 2 * max(known, default=0.0) or math.inf

    def hold_out(self) -> None:
        """Report on the best so far from the holdout split, unless that is known already."""
        best = self.best()
        if best is None or load_holdout(self.study, best.config.id) is not None:
            return
        with self.watch.measuring("holdout"), self.evaluator.turns.working():
            store_holdout(self.study, best.config.id, self.evaluator.holdout(self.exported_candidate(best)))
        self.holdouts += 1

    def exported_candidate(self, best: Trial) -> Candidate:
        """The best as it lies in the folder."""
        data = self.folder / DATA
        certified = DATA in Certificate.load(self.folder / CERTIFICATE).files
        model = large.join((self.folder / MODEL).read_bytes(), data.read_bytes() if certified else None)
        return Candidate(best.config, model, self.evaluator.runtime.options(best.config))

    def recall(self) -> None:
        """After a resume: whose model lies in the folder, if it is whole; what was measured anew."""
        self.measured_anew = load_measured_anew(self.study)
        certificate = exported(self.folder)
        self.exported_id = None if certificate is None else certificate.config_id

    def write_tables(self) -> None:
        """summary.json, pareto.csv and sensitivity.csv as they are now."""
        with self.watch.measuring("files"):
            atomic.write_text(self.folder / "summary.json", json.dumps(self.summary(), indent=2, ensure_ascii=False))
            report.write_pareto(self.folder / "pareto.csv", self.trials)
            table = self.folder / "sensitivity.csv"
            if self.sensitivity is not None and not table.exists():
                atomic.write_text(table, self.sensitivity.frame().to_csv(index=False))

    def summary(self) -> dict[str, object]:
        """summary.json: see design and README for its fields."""
        best, trials = self.best(), self.trials
        reference = len(self.evaluator.reference.model)
        evaluation = None if best is None else best.evaluation
        return {
            "task": self.task_name,
            "study": self.study.study_name,
            "runtime": self.evaluator.runtime.name,
            "runtime_version": self.evaluator.runtime.version,
            "machine": machine.describe(),
            "threads": self.evaluator.threads,
            "workers": self.workers,
            "seed": self.seed,
            "primary": self.evaluator.primary.name,
            "higher_is_better": self.evaluator.primary.higher_is_better,
            "constraints": self.space.constraints.model_dump(),
            "objectives": list(self.space.objectives),
            "baseline": {
                "metric": self.evaluator.reference_metrics[self.evaluator.primary.name],
                "latency_ms": None if evaluation is None else evaluation.reference_ms,
                "size_bytes": reference,
            },
            "best": None if best is None or evaluation is None else self._best_summary(best, evaluation),
            "trials": self._counts(trials),
            "wall_s": self.budget.elapsed_s,
            "time_to_best_s": None if best is None else best.elapsed_s,
            "seconds": self._seconds(trials),
            "notes": list(self.choices.notes),
            "feasible": best is not None,
        }

    def _best_summary(self, best: Trial, evaluation: Evaluation) -> dict[str, object]:
        return {
            "metric": evaluation.metric,
            "drop": evaluation.drop,
            "drop_bound": evaluation.drop_bound,
            "latency_ms": evaluation.latency_ms.median,
            "speedup": evaluation.speedup.median,
            "speedup_interval": [evaluation.speedup.low, evaluation.speedup.high],
            "noisy": evaluation.noisy,
            "size_bytes": evaluation.size_bytes,
            "compression": evaluation.compression,
            "config_id": best.config.id,
            "origin": best.origin,
            "precisions": {p.value: n for p in Precision if (n := len(best.config.layers_with(p)))},
            "schemes": best.config.counts(),
            "rest": best.config.rest.value,
            "silent_layers": list(evaluation.silent),
            "holdout": load_holdout(self.study, best.config.id),
            "train_s": evaluation.train_s,
            "training_gains": load_gains(self.study, best.config.id),
        }

    def _counts(self, trials: list[Trial]) -> dict[str, int]:
        return {state: sum(trial.state == state for trial in trials) for state in ("complete", "pruned", "failed")}

    def _seconds(self, trials: list[Trial]) -> Seconds:
        """Where the wall time went, by part; those of the trials are summed over the study."""
        parts = {**self.watch.seconds, **seconds_of(trials)}
        return {name: round(value, 3) for name, value in parts.items()}

    def export(self, candidate: Candidate, evaluation: Evaluation) -> None:
        """Into the folder, as the best so far."""
        with self.watch.measuring("export"):
            export(self.evaluator, candidate, evaluation, self.folder)
        self.exported_id = candidate.config.id


def exported(folder: Path) -> Certificate | None:
    """The certificate of what lies in `folder`, where its files are whole; else None."""
    try:
        certificate = Certificate.load(folder / CERTIFICATE)
        whole = all(FileMark.of((folder / name).read_bytes()) == mark for name, mark in certificate.files.items())
    except (InputError, OSError):
        return None
    return certificate if whole else None
