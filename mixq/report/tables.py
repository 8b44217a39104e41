"""Trials and layers as pandas tables; the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixq import atomic
from mixq.config import Precision, all_schemes
from mixq.searcher.trial import Trial

LAYER_COLUMNS = ("layer", "asked", "executed", "kernel", "time_us", "sqnr_db", "kl", "silent")


def trials_frame(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row a trial: what it was (layers by scheme), every number of its evaluation, why it failed or was
    let go.

    Columns are named as in `Evaluation.row()`; a metric of the task is `metrics_NAME`. What a trial does not have is
    missing (NaN).
    """
    schemes = _schemes(trials)
    front = ["number", "state", "origin", "feasible", "config_id", *schemes, "rest", "recipe"]
    frame = pd.DataFrame([_row(trial, schemes) for trial in trials])
    return frame.reindex(columns=[*front, *(name for name in frame.columns if name not in front)])


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The feasible trials that no other one beats: no worse in drop, latency and size, and better in one of them."""
    measured = [(trial, e) for trial in trials if trial.feasible and (e := trial.evaluation) is not None]
    values = np.array([(e.drop, e.latency_ms.median, e.size_bytes) for _, e in measured], float).reshape(-1, 3)
    front = [
        (e.drop, trial.number, trial) for (trial, e), kept in zip(measured, front_mask(values), strict=True) if kept
    ]
    return [trial for _, _, trial in sorted(front, key=lambda entry: entry[:2])]


def front_mask(values: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows (points; columns are minimized) no other row dominates. Rows with NaN or inf are not on the front."""
    finite = np.isfinite(values).all(axis=1)
    points = np.where(finite[:, None], values, np.inf)
    no_worse = (points[:, None] <= points).all(axis=2)
    better = (points[:, None] < points).any(axis=2)
    mask: np.ndarray[Any, np.dtype[np.bool_]] = finite & ~(no_worse & better).any(axis=0)
    return mask


def write_pareto(path: str | Path, trials: Sequence[Trial]) -> None:
    """The front of `trials` as CSV, the smallest drop first."""
    frame = trials_frame(pareto(trials)).drop(columns=["state", "feasible", "reason"], errors="ignore")
    atomic.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def layer_table(best: Trial, sensitivity: pd.DataFrame | None) -> pd.DataFrame:
    """One row a layer, in the graph's order: what was asked, what ran, and how much that scheme hurts alone.

    sqnr_db and kl are those of the layer's scheme in `sensitivity` (columns layer, scheme, sqnr_db, kl), missing where
    it has none. silent: the layer did not run in what was asked of it.
    """
    schemes = best.config.schemes
    kernels = {kernel.layer: kernel for kernel in best.evaluation.kernels} if best.evaluation else {}
    silent = best.evaluation.silent if best.evaluation else ()
    rows = [
        {
            "layer": name,
            "asked": str(schemes[name]),
            "executed": kernels[name].executed if name in kernels else None,
            "kernel": kernels[name].kernel if name in kernels else None,
            "time_us": kernels[name].time_us if name in kernels else None,
            "silent": name in silent,
        }
        for name in layer_order(best)
    ]
    frame = pd.DataFrame(rows, columns=[name for name in LAYER_COLUMNS if name not in ("sqnr_db", "kl")])
    if sensitivity is None or sensitivity.empty:
        return frame.assign(sqnr_db=np.nan, kl=np.nan)[list(LAYER_COLUMNS)]
    errors = sensitivity.assign(asked=sensitivity["scheme"].astype(str))[["layer", "asked", "sqnr_db", "kl"]]
    return frame.merge(errors, on=["layer", "asked"], how="left")[list(LAYER_COLUMNS)]


def layer_order(trial: Trial) -> list[str]:
    """Layers as they stand in the graph, which the kernel audit keeps and a configuration (sorted by name) does not."""
    audited = [kernel.layer for kernel in trial.evaluation.kernels] if trial.evaluation else []
    return list(dict.fromkeys([*(name for name in audited if name in trial.config.schemes), *trial.config.schemes]))


def is_fp32(trial: Trial) -> bool:
    """Whether this is the network as it was brought."""
    return trial.config.rest is Precision.FP32 and set(trial.config.counts()) == {str(Precision.FP32)}


def _schemes(trials: Sequence[Trial]) -> list[str]:
    used = {name for trial in trials for name in trial.config.counts()}
    return [str(scheme) for scheme in all_schemes() if str(scheme) in used]


def _row(trial: Trial, schemes: Sequence[str]) -> dict[str, object]:
    counts = trial.config.counts()
    row: dict[str, object] = {
        "number": trial.number,
        "state": trial.state,
        "origin": trial.origin,
        "feasible": trial.feasible,
        **{scheme: counts.get(scheme, 0) for scheme in schemes},
        "rest": str(trial.config.rest),
        "recipe": " ".join(step.name for step in trial.config.recipe) or "none",
    }
    if trial.evaluation is not None:
        row |= trial.evaluation.row()
        row |= {f"metrics_{name}": value for name, value in trial.evaluation.metrics.items()}
    if trial.glimpse is not None:
        row |= trial.glimpse.row()
    return row | {
        "config_id": trial.config.id,
        "seconds": trial.seconds,
        "elapsed_s": trial.elapsed_s,
        "reason": trial.reason,
    }
