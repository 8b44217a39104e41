"""What a tracking store is told of a trial: params, metrics and files, as plain values."""

from __future__ import annotations

import json
import numbers
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # its package needs optuna, which is slow to import
    from mixq.searcher.trial import Trial


def trial_params(trial: Trial) -> dict[str, str]:
    """What a trial is: layers by scheme and not layer by layer, which would be hundreds (config.json has them)."""
    config = trial.config
    params = {"number": str(trial.number), "state": trial.state, "origin": trial.origin, "config_id": config.id}
    params |= {"rest": str(config.rest), "recipe": ", ".join(step.name for step in config.recipe) or "none"}
    if trial.evaluation is not None:
        params |= {"runtime": trial.evaluation.runtime, "threads": str(trial.evaluation.threads)}
    return params | {f"layers/{scheme}": str(count) for scheme, count in config.counts().items()}


def trial_metrics(trial: Trial) -> dict[str, float]:
    """Every number of the trial's evaluation, or of what was seen of a pruned one.

    violation/NAME: how far it is beyond each constraint, ≤ 0 where that is met.
    """
    found: dict[str, object] = {"seconds_trial": trial.seconds, "elapsed_s": trial.elapsed_s}
    found["feasible"] = float(trial.feasible)
    if trial.evaluation is not None:
        found |= {name: value for name, value in trial.evaluation.row().items() if name != "threads"}
        found |= {f"metrics/{name}": value for name, value in trial.evaluation.metrics.items()}
    if trial.glimpse is not None:
        found |= trial.glimpse.row()
    found |= {f"violation/{name}": value for name, value in trial.violations}
    return {name: float(value) for name, value in found.items() if isinstance(value, numbers.Real)}


def trial_files(trial: Trial) -> dict[str, str]:
    """The artifacts of a trial by file name: its configuration, and the kernels that the runtime executed."""
    files = {"config.json": trial.config.to_json()}
    if trial.evaluation is not None:
        kernels = [asdict(kernel) for kernel in trial.evaluation.kernels]
        files["kernels.json"] = json.dumps(kernels, indent=2, ensure_ascii=False)
    return files
