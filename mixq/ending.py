"""How a search ends: what is measured of the best alone, the report, the last logs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from mixq import atomic, report
from mixq.certificate import CERTIFICATE, Certificate
from mixq.gains import training_gains
from mixq.job import SearchJob
from mixq.searcher.study import load_gains, store_gains
from mixq.searcher.trial import Trial

LOGGED = (
    "summary.json",
    "pareto.csv",
    "sensitivity.csv",
    "report.html",
    "pareto.png",
    "best.json",
    "certificate.json",
)


def finish(job: SearchJob, hurry: bool = False) -> dict[str, object]:
    """Robustness of the best (not in a hurry), the report, the last logs; the summary."""
    job.ensure_exported()
    job.hold_out()
    best = job.best()
    robustness = None if hurry else _robustness(job, best)
    if not hurry:
        _measure_gains(job, best)
    job.write_tables()
    summary = {**job.summary(), "robustness": robustness}
    atomic.write_text(job.folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False))
    told = _profiled(job, best)
    _certify_times(job, told)
    found = job.sensitivity
    measures = (found.frame(), found.kendall()) if found is not None else ()
    report.write_report(job.folder / "report.html", summary, job.trials, told, *measures)
    primary, max_drop = str(job.evaluator.primary), job.space.constraints.max_drop
    report.plot_pareto(job.folder / "pareto.png", job.trials, best, primary, max_drop)
    _log_files(job, best)
    return summary


def _robustness(job: SearchJob, best: Trial | None) -> dict[str, dict[str, float]]:
    with job.watch.measuring("robustness"), job.evaluator.turns.working():
        found = {"fp32": job.evaluator.robustness(job.evaluator.reference)}
        if best is not None:
            found["best"] = job.evaluator.robustness(job.exported_candidate(best))
        return found


def _measure_gains(job: SearchJob, best: Trial | None) -> None:
    """What training gained in each layer of the best, unless that is known already."""
    if best is None or not best.config.qat_layers or load_gains(job.study, best.config.id) is not None:
        return
    with job.watch.measuring("gains"), job.evaluator.turns.working():
        store_gains(job.study, best.config.id, [asdict(g) for g in training_gains(job.evaluator, best.config)])


def _profiled(job: SearchJob, best: Trial | None) -> Trial | None:
    """`best` with the time of each kernel: in the end only, for all cores are waited for, and nobody else times."""
    if best is None or best.evaluation is None:
        return best
    kernels = job.evaluator.profile(job.exported_candidate(best))
    return replace(best, evaluation=replace(best.evaluation, kernels=kernels))


def _certify_times(job: SearchJob, best: Trial | None) -> None:
    """Put the times of the kernels into the certificate, where it has none yet."""
    known = Certificate.load(job.folder / CERTIFICATE).kernels
    if best is not None and best.evaluation is not None and all(record.time_us is None for record in known):
        job.export(job.exported_candidate(best), best.evaluation)


def _log_files(job: SearchJob, best: Trial | None) -> None:
    if job.tracker is None:
        return
    row: Mapping[str, object] = best.evaluation.row() if best is not None and best.evaluation is not None else {}
    metrics = {name: value for name, value in row.items() if isinstance(value, float | int)}
    files = [path for name in LOGGED if (path := job.folder / name).exists()]
    job.tracker.finish_study(files, job.folder / "best.onnx", metrics, best is not None)
