"""The drop: by how much the primary metric of a model is worse than FP32's, and how well that is known.

Which way is worse is decided here and nowhere else: a drop above 0 is a loss, whichever way the metric points.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mixq.task import Array, Outputs, Task

RESAMPLES = 1000
FEWEST_RESAMPLES = 50
SLOW_SECONDS = 5.0  # for metrics that must be computed anew on every resample

SAME = 1e-9  # how near the mean of a metric's single values comes to a metric that is that mean

MetricOf = Callable[[Outputs, Array], float]
Mean = Callable[[Array], float]
Values = TypeVar("Values", float, Array)


@dataclass(frozen=True)
class PrimaryMetric:
    """The metric to protect: its name, its value for outputs and targets, and which way is better."""

    name: str
    of: MetricOf
    higher_is_better: bool = True

    def __str__(self) -> str:
        return metric_label(self.name, self.higher_is_better)

    def drop(self, before: Values, after: Values) -> Values:
        """How much worse `after` is than `before`, in the metric's units; below 0 where it is better."""
        return before - after if self.higher_is_better else after - before

    def drop_on(self, reference: Outputs, outputs: Outputs, targets: Array) -> float | None:
        """The drop from the reference's to the other outputs; None where the metric is undefined on these rows."""
        before, after = (self.defined(found, targets) for found in (reference, outputs))
        return None if before is None or after is None else self.drop(before, after)

    def defined(self, outputs: Outputs, targets: Array) -> float | None:
        """The metric of these rows; None where it has none, in any way that its author chose (an error, NaN)."""
        try:
            value = self.of(outputs, targets)
        except Exception:
            return None
        return value if math.isfinite(value) else None


def metric_label(name: str, higher_is_better: bool) -> str:
    """How a metric is called where its direction matters."""
    return name if higher_is_better else f"{name} (lower is better)"


def primary_metric(task: Task) -> PrimaryMetric:
    """That of a task."""
    name = task.primary
    return PrimaryMetric(
        name, lambda outputs, targets: float(task.metrics(outputs, targets)[name]), task.higher_is_better
    )


def drop_interval(
    metric: PrimaryMetric,
    reference: Outputs,
    outputs: Outputs,
    targets: Array,
    rows_per_sample: int = 1,
    seed: int = 0,
    *,
    confidence: float = 0.95,
    most_s: float = SLOW_SECONDS,
) -> tuple[float, float]:
    """Interval of the drop from reference to outputs by the paired bootstrap (Efron & Tibshirani 1993, ch. 13).

    Samples of `rows_per_sample` rows are drawn with replacement, the same ones for both. A metric that is the mean of
    its values for single samples, or their geometric mean (perplexity), is recognized as such, and resampled from
    those; any other is computed anew on as many resamples as `most_s` seconds allow, and FEWEST_RESAMPLES at least. NaN
    where no sample has the metric.
    """
    rng = np.random.default_rng(seed)
    count = len(targets) // rows_per_sample
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a metric that does not fit single rows or odd samples may say so
        singles = _single_values(metric, reference, outputs, targets, rows_per_sample)
        if singles is not None:
            before, after, mean = singles
            draws = (rng.integers(0, count, count) for _ in range(RESAMPLES))
            drops = [metric.drop(mean(before[index]), mean(after[index])) for index in draws]
        else:
            drops = _resampled_drops(metric, reference, outputs, targets, rows_per_sample, rng, most_s)
    low, high = np.quantile(drops, [(1 - confidence) / 2, (1 + confidence) / 2]) if drops else (math.nan, math.nan)
    return float(low), float(high)


def _single_values(
    metric: PrimaryMetric, reference: Outputs, outputs: Outputs, targets: Array, rows: int
) -> tuple[Array, Array, Mean] | None:
    """The metric of each sample alone, for both outputs, and the mean of them that is the metric of all; else None."""
    parts = [slice(i, i + rows) for i in range(0, len(targets), rows)]
    values = []
    for found in (reference, outputs):
        singles = [metric.defined(_rows(found, part), targets[part]) for part in parts]
        if None in singles:
            return None
        values.append(np.array(singles))
    wholes = [metric.of(found, targets) for found in (reference, outputs)]
    for mean in MEANS:
        if np.allclose([mean(value) for value in values], wholes, rtol=SAME, atol=SAME):
            return values[0], values[1], mean
    return None


def _mean(values: Array) -> float:
    return float(values.mean())


def _geometric_mean(values: Array) -> float:
    """Of values of one sign; NaN for others."""
    sign = np.sign(values[0])
    return float(sign * np.exp(np.log(values * sign).mean())) if (values * sign > 0).all() else math.nan


MEANS: tuple[Mean, ...] = (_mean, _geometric_mean)


def _resampled_drops(
    metric: PrimaryMetric,
    reference: Outputs,
    outputs: Outputs,
    targets: Array,
    rows: int,
    rng: np.random.Generator,
    most_s: float,
) -> list[float]:
    """Drops on resampled rows; samples for which the metric is undefined are left out."""
    drops: list[float] = []
    end = time.monotonic() + most_s
    for done in range(RESAMPLES):
        if done >= FEWEST_RESAMPLES and time.monotonic() >= end:
            break
        samples = rng.integers(0, len(targets) // rows, len(targets) // rows)
        index = (samples[:, None] * rows + np.arange(rows)).reshape(-1)
        drop = metric.drop_on(_rows(reference, index), _rows(outputs, index), targets[index])
        if drop is not None:
            drops.append(drop)
    return drops


def _rows(outputs: Mapping[str, Array], index: slice | Array) -> dict[str, Array]:
    return {name: value[index] for name, value in outputs.items()}
