"""Latency: the order of the calls, and intervals against the binomial distribution. No assertion on time itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
from scipy import stats

from mixq.latency import (
    FEWEST_PAIRS,
    MOST_PAIRS,
    PATIENCE,
    TIMINGS,
    WARM_UP,
    PairedLatency,
    measure_pair,
    median_interval,
)


@pytest.mark.parametrize("size", [*range(6, 41), 99, 100, 999, 1000])
def test_the_interval_is_the_binomial_one(size: int) -> None:
    values = np.random.default_rng(size).lognormal(size=size)
    found = median_interval(values)
    wanted = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (found.low, found.high) == (wanted.low, wanted.high)
    assert found.median == np.median(values)


@pytest.mark.parametrize("size", range(1, 6))
def test_too_few_values_give_their_whole_range(size: int) -> None:
    found = median_interval(range(size))
    assert (found.low, found.high) == (0, size - 1)


def test_the_interval_of_negatives_is_the_mirrored_one() -> None:
    values = np.random.default_rng(0).lognormal(size=37)
    found, mirrored = median_interval(values), median_interval(-values)
    assert (mirrored.low, mirrored.high) == (-found.high, -found.low)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """2,000 samples of 40: the share that holds the true median is that of the binomial, 96.2 %, ± 3 deviations."""
    samples = np.random.default_rng(0).exponential(size=(2000, 40))
    found = [median_interval(sample) for sample in samples]
    share = np.mean([interval.low <= np.log(2) <= interval.high for interval in found])
    wanted = stats.binom.cdf(26, 40, 0.5) - stats.binom.cdf(13, 40, 0.5)
    assert share == pytest.approx(wanted, abs=3 * np.sqrt(wanted * (1 - wanted) / 2000))


def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only its spending moves on."""
    now = [0.0]
    monkeypatch.setattr("mixq.latency.time.perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    return spend


def test_calls_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    spend, calls = ticking(monkeypatch), list[str]()

    def call(name: str) -> None:
        calls.append(name)
        spend(1.0)

    found = measure_pair(lambda: call("a"), lambda: call("b"), budget_s=0.0)
    assert (found.pairs, found.noisy) == (FEWEST_PAIRS, False)
    assert "".join(calls) == "ab" * WARM_UP + "abba" * (FEWEST_PAIRS // 2)


def test_the_budget_bounds_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spend = ticking(monkeypatch)
    found = measure_pair(lambda: spend(2.0), lambda: spend(1.0), budget_s=150.0)
    assert found.pairs == 50
    assert (found.reference.median, found.candidate.median, found.speedup.median) == (2000, 1000, 2)


def test_a_look_comes_each_time_that_the_pairs_have_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    spend, seen = ticking(monkeypatch), list[PairedLatency]()
    found = measure_pair(lambda: spend(2.0), lambda: spend(1.0), budget_s=300.0, look=seen.append)
    assert [look.pairs for look in seen] == [20, 40, 80]
    assert {look.speedup.median for look in seen} == {2}
    assert found.pairs == 100


def test_a_look_may_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    spend, calls = ticking(monkeypatch), []

    def candidate() -> None:
        calls.append("b")
        spend(1.0)

    def look(found: PairedLatency) -> None:
        raise StopIteration(found.pairs)

    with pytest.raises(StopIteration, match="20"):
        measure_pair(lambda: spend(2.0), candidate, budget_s=300.0, look=look)
    assert len(calls) == WARM_UP + FEWEST_PAIRS


def test_fast_calls_are_timed_no_more_often_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    spend = ticking(monkeypatch)
    assert measure_pair(lambda: spend(2e-6), lambda: spend(1e-6), budget_s=60.0).pairs == MOST_PAIRS


def test_a_noisy_ratio_is_measured_with_patience_again_and_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios of 1 and 3 in turn: their interval never gets narrow."""
    spend, calls = ticking(monkeypatch), count()
    found = measure_pair(lambda: spend(3.0 if next(calls) % 2 else 1.0), lambda: spend(1.0), budget_s=150.0)
    assert found.pairs == PATIENCE * 50
    assert (found.speedup.low, found.speedup.high) == (1, 3)
    assert found.noisy
    assert next(calls) == TIMINGS * (WARM_UP + found.pairs)


def test_a_noise_that_passes_is_not_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As above for the first timing, then quiet."""
    spend, calls = ticking(monkeypatch), count()
    noisy = WARM_UP + PATIENCE * 50
    found = measure_pair(
        lambda: spend(1.0 if (n := next(calls)) < noisy and n % 2 else 3.0), lambda: spend(1.0), budget_s=150.0
    )
    assert (found.speedup.low, found.speedup.median, found.speedup.high) == (3, 3, 3)
    assert not found.noisy


def test_ratios_are_taken_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the calls advance, each call slower than the last; the reference has three times the work."""
    spend, pace = ticking(monkeypatch), (1.01**i for i in count())
    found = measure_pair(lambda: spend(3 * next(pace)), lambda: spend(next(pace)), budget_s=0.0)
    assert found.reference.high > 1.1 * found.reference.low
    assert found.candidate.high > 1.1 * found.candidate.low
    assert found.speedup.low == pytest.approx(3, rel=0.011)
    assert found.speedup.high == pytest.approx(3, rel=0.011)
    assert found.reference.median == pytest.approx(3 * found.candidate.median, rel=0.011)
