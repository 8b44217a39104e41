"""Drops and their intervals: against the normal approximation of a paired mean, whichever way the metric points."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from mixq.drop import MetricOf, PrimaryMetric, drop_interval, metric_label
from mixq.task import Array, Outputs
from tests.scores import ROWS, labels, logits, nearly


def accuracy(outputs: Outputs, targets: Array) -> float:
    return float((outputs["y"].argmax(1) == targets).mean())


def pair_score(outputs: Outputs, targets: Array) -> float:
    """The negative squared error of products of pairs of rows: a row alone has none."""
    first, second = outputs["y"][::2, 0], outputs["y"][1::2, 0]
    return -float(np.mean((first * second - targets[::2]) ** 2))


def correlation(outputs: Outputs, targets: Array) -> float:
    return float(np.corrcoef(outputs["y"][:, 0], targets)[0, 1])


def perplexity(outputs: Outputs, targets: Array) -> float:
    """exp of the mean cross-entropy of the targets' classes."""
    wide = outputs["y"].astype(np.float64)
    return float(np.exp(np.mean(special.logsumexp(wide, axis=1) - wide[np.arange(len(wide)), targets])))


def interval(
    metric: MetricOf, reference: Outputs, outputs: Outputs, targets: Array, rows_per_sample: int = 1, seed: int = 0
) -> tuple[float, float]:
    """Of a metric of which more is better."""
    return drop_interval(PrimaryMetric("m", metric), reference, outputs, targets, rows_per_sample, seed)


def test_the_interval_of_a_mean_is_the_normal_approximations() -> None:
    reference, targets = {"y": logits(0, 4000)}, labels(4000)
    outputs = {"y": nearly(reference["y"])}
    right = [(found["y"].argmax(1) == targets).astype(np.float64) for found in (reference, outputs)]
    difference = right[0] - right[1]
    half = stats.norm.ppf(0.975) * difference.std(ddof=1) / math.sqrt(len(targets))
    low, high = interval(accuracy, reference, outputs, targets)
    assert low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(difference.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("metric", [accuracy, correlation])
def test_the_interval_is_paired(metric: MetricOf) -> None:
    outputs = {"y": logits(0)}
    assert interval(metric, outputs, outputs, labels()) == (0, 0)


def test_the_interval_is_the_same_every_time() -> None:
    reference, outputs = {"y": logits(0)}, {"y": nearly(logits(0))}
    found = [interval(accuracy, reference, outputs, labels()) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0] != interval(accuracy, reference, outputs, labels(), seed=1)


def test_rows_of_one_sample_stay_together() -> None:
    """Pairs with one target each: 200 samples, whose values' normal approximation is the oracle."""
    reference, outputs = {"y": logits(0)}, {"y": nearly(logits(0))}
    targets = np.repeat(np.random.default_rng(3).standard_normal(ROWS // 2), 2)
    pairs = [found["y"][:, 0].astype(np.float64).reshape(-1, 2).prod(1) for found in (reference, outputs)]
    values = [-((pair - targets[::2]) ** 2) for pair in pairs]
    difference = values[0] - values[1]
    half = stats.norm.ppf(0.975) * difference.std(ddof=1) / math.sqrt(len(difference))
    low, high = interval(pair_score, reference, outputs, targets, rows_per_sample=2)
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.2 * half)


def test_a_resampled_metric_sees_whole_samples_only() -> None:
    seen: list[Array] = []

    def metric(outputs: Outputs, targets: Array) -> float:
        seen.append(np.abs(outputs["y"][:, 0]).astype(int))
        return correlation(outputs, targets)

    rows = np.arange(60, dtype=np.float32)[:, None]
    interval(metric, {"y": rows}, {"y": -rows}, np.arange(60) % 11, rows_per_sample=3)
    for found in seen:
        samples = found.reshape(-1, 3)
        assert (samples % 3 == np.arange(3)).all()
        assert (samples // 3 == samples[:, :1] // 3).all()


def test_a_correlation_is_resampled_as_a_whole() -> None:
    """Fisher's z: 95 % of samples have a correlation within tanh(artanh r ± 1.96 / √(n − 3)).

    The outputs correlate with nothing, and independently of the reference, so the two variances add up.
    """
    rng = np.random.default_rng(0)
    targets = rng.standard_normal(ROWS)
    reference = {"y": (targets + rng.standard_normal(ROWS))[:, None]}
    outputs = {"y": rng.standard_normal((ROWS, 1))}
    before, after = (correlation(found, targets) for found in (reference, outputs))
    deviation = math.sqrt(((1 - before**2) ** 2 + 1) / (ROWS - 3))
    low, high = interval(correlation, reference, outputs, targets)
    assert low < before - after < high
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * deviation, rel=0.15)


def single_class_refused(outputs: Outputs, targets: Array) -> float:
    """Accuracy averaged over two classes, which a sample without both of them has not."""
    if len(set(targets.tolist())) < 2:
        raise ValueError("only one class")
    right = outputs["y"].argmax(1) == targets
    return float(np.mean([right[targets == label].mean() for label in (0, 1)]))


def test_samples_without_a_metric_are_left_out() -> None:
    targets = np.array([0, 1, 1, 1, 1, 1])
    reference = {"y": np.eye(2)[targets]}
    outputs = {"y": np.eye(2)[[0, 1, 1, 1, 0, 0]]}
    low, high = interval(single_class_refused, reference, outputs, targets)
    assert 0 <= low < 0.2 < high <= 0.5


def test_a_metric_that_no_sample_has_gives_no_interval() -> None:
    outputs, targets = {"y": logits(0, 6)}, np.zeros(6, np.int64)
    low, high = interval(single_class_refused, outputs, outputs, targets)
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize("metric", [accuracy, perplexity, correlation, pair_score, single_class_refused])
def test_a_metric_turned_round_has_the_same_drop_and_interval(metric: MetricOf) -> None:
    """Its negative, of which less is better, must change no number."""
    up, down = PrimaryMetric("m", metric), PrimaryMetric("m", lambda o, t: -metric(o, t), higher_is_better=False)
    reference, outputs, targets = {"y": logits(0)}, {"y": nearly(logits(0))}, np.repeat(labels()[::2] % 2, 2)
    assert up.drop_on(reference, outputs, targets) == down.drop_on(reference, outputs, targets)
    bounds = [drop_interval(found, reference, outputs, targets, rows_per_sample=2, most_s=0) for found in (up, down)]
    assert bounds[0] == bounds[1]


@given(before=st.floats(-1e6, 1e6), after=st.floats(-1e6, 1e6))
def test_a_drop_above_zero_is_a_loss(before: float, after: float) -> None:
    up, down = (PrimaryMetric("m", accuracy, higher_is_better=better) for better in (True, False))
    assert (up.drop(before, after) > 0) == (after < before)
    assert (down.drop(before, after) > 0) == (after > before)
    assert abs(up.drop(before, after)) == abs(after - before)
    assert up.drop(before, after) == -down.drop(before, after) == down.drop(-before, -after)


def test_a_drop_on_rows_without_the_metric_is_none() -> None:
    known = {"y": np.eye(2)}
    assert PrimaryMetric("m", single_class_refused).drop_on(known, known, np.zeros(2, np.int64)) is None


def test_the_direction_is_said_where_lower_is_better() -> None:
    assert metric_label("top1", higher_is_better=True) == "top1"
    assert str(PrimaryMetric("loss", accuracy, higher_is_better=False)) == "loss (lower is better)"


def test_perplexity_is_resampled_from_single_rows() -> None:
    """As a metric computed anew on every resample has it, but for how many of them there are; in few calls."""
    calls: list[int] = []

    def counted(outputs: Outputs, targets: Array) -> float:
        calls.append(len(targets))
        return perplexity(outputs, targets)

    reference, outputs, targets = {"y": logits(0)}, {"y": nearly(logits(0))}, labels()
    low, high = interval(counted, reference, outputs, targets)
    assert len(calls) == 2 * ROWS + 2
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, ROWS, ROWS) for _ in range(1000)]
    drops = [
        perplexity({"y": reference["y"][i]}, targets[i]) - perplexity({"y": outputs["y"][i]}, targets[i]) for i in draws
    ]
    assert (low, high) == pytest.approx(np.quantile(drops, (0.025, 0.975)), rel=1e-9)


def test_a_metric_that_is_nought_by_one_row_is_no_geometric_mean() -> None:
    """The least of the rows' values, on rows of which the first has 0."""

    def least(outputs: Outputs, targets: Array) -> float:
        return float(outputs["y"].min())

    reference, outputs = {"y": np.array([0.0, 4.0])}, {"y": np.array([0.0, 1.0])}
    low, high = interval(least, reference, outputs, np.zeros(2))
    assert (low, high) == (0, 3)
