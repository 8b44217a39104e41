"""What is computed from outputs: distances from FP32, calibration, agreement, and the interval of a drop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mixq.task import Array, Outputs

ECE_BINS = 15
RESAMPLES = 1000
SLOW_SECONDS = 5.0  # for metrics that must be computed anew on every resample

MetricOf = Callable[[Outputs, Array], float]


def class_scores(outputs: Outputs, targets: Array) -> Array | None:
    """The outputs as class scores (rows × classes) where they are that: one float matrix, targets class indices."""
    if len(outputs) != 1 or targets.ndim != 1 or targets.dtype.kind not in "iu" or not len(targets):
        return None
    scores = next(iter(outputs.values()))
    if scores.ndim != 2 or scores.dtype.kind != "f" or scores.shape[1] < 2:
        return None
    return scores if targets.min() >= 0 and targets.max() < scores.shape[1] else None


def probabilities(scores: Array) -> Array:
    """Softmax over the last axis (float64); scores that are probabilities already stay as they are."""
    scores = scores.astype(np.float64)
    if scores.min() >= 0 and np.allclose(scores.sum(-1), 1, atol=1e-3):
        return scores
    exponent = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponent / exponent.sum(-1, keepdims=True))


def kl_divergence(reference: Array, scores: Array) -> float:
    """Mean over rows of KL(softmax(reference) ‖ softmax(scores)), in nats."""
    p, q = (np.maximum(probabilities(x), 1e-12) for x in (reference, scores))
    return max(0.0, float((p * np.log(p / q)).sum(-1).mean()))


def relative_mse(reference: Outputs, outputs: Outputs) -> float:
    """Mean squared error ÷ mean square of the reference, averaged over the float outputs."""
    found = []
    for name, value in reference.items():
        if value.dtype.kind == "f":
            wanted = value.astype(np.float64)
            found.append(((outputs[name] - wanted) ** 2).mean() / max((wanted**2).mean(), 1e-30))
    return float(np.mean(found)) if found else 0.0


@dataclass(frozen=True, slots=True)
class ClassMeasures:
    """kl and agreement against FP32, expected calibration error against the targets."""

    kl: float
    agreement: float
    ece: float


def class_measures(reference: Outputs, outputs: Outputs, targets: Array) -> ClassMeasures | None:
    """All of them, or None where the outputs are not class scores."""
    before, after = class_scores(reference, targets), class_scores(outputs, targets)
    if before is None or after is None:
        return None
    return ClassMeasures(
        kl_divergence(before, after), agreement(before, after), expected_calibration_error(after, targets)
    )


def agreement(reference: Array, scores: Array) -> float:
    """Share of rows with the same top class."""
    return float((reference.argmax(-1) == scores.argmax(-1)).mean())


def expected_calibration_error(scores: Array, targets: Array) -> float:
    """|accuracy − confidence|, averaged over 15 equal bins of confidence by their share (Guo et al. 2017, eq. 3)."""
    chance = probabilities(scores)
    confidence, correct = chance.max(-1), chance.argmax(-1) == targets
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(targets))


def drop_interval(
    metric: MetricOf, reference: Outputs, outputs: Outputs, targets: Array, rows_per_sample: int = 1, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of metric(reference) − metric(outputs) by the paired bootstrap (Efron & Tibshirani 1993, ch. 13).

    Samples of `rows_per_sample` rows are drawn with replacement, the same ones for both. A metric that is the mean of
    its values for single samples is recognized as such, and resampled from those.
    """
    rng = np.random.default_rng(seed)
    count = len(targets) // rows_per_sample
    singles = [_single_values(metric, found, targets, rows_per_sample) for found in (reference, outputs)]
    if singles[0] is not None and singles[1] is not None:
        draws = rng.integers(0, count, (RESAMPLES, count))
        drops = (singles[0] - singles[1])[draws].mean(1)
    else:
        drops = _resampled_drops(metric, reference, outputs, targets, rows_per_sample, rng)
    low, high = np.quantile(drops, [0.025, 0.975])
    return float(low), float(high)


def _single_values(metric: MetricOf, outputs: Outputs, targets: Array, rows: int) -> Array | None:
    """The metric of each sample alone, where their mean is the metric of all; else None."""
    try:
        found = np.array(
            [metric(_rows(outputs, slice(i, i + rows)), targets[i : i + rows]) for i in range(0, len(targets), rows)]
        )
    except Exception:  # a metric may be undefined for one sample, in any way that its author chose
        return None
    if not np.isfinite(found).all() or abs(found.mean() - metric(outputs, targets)) > 1e-9:
        return None
    return found


def _resampled_drops(
    metric: MetricOf, reference: Outputs, outputs: Outputs, targets: Array, rows: int, rng: np.random.Generator
) -> Array:
    drops: list[float] = []
    end = time.monotonic() + SLOW_SECONDS
    while len(drops) < RESAMPLES and (len(drops) < 50 or time.monotonic() < end):
        samples = rng.integers(0, len(targets) // rows, len(targets) // rows)
        index = (samples[:, None] * rows + np.arange(rows)).reshape(-1)
        drops.append(metric(_rows(reference, index), targets[index]) - metric(_rows(outputs, index), targets[index]))
    return np.array(drops)


def _rows(outputs: Mapping[str, Array], index: slice | Array) -> dict[str, Array]:
    return {name: value[index] for name, value in outputs.items()}
