"""The histogram: exact counts, in any order of batches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixq.calibration import TensorStatistics
from mixq.calibration.histogram import BINS, SAMPLE
from mixq.errors import InputError


def seen(*batches: npt.ArrayLike) -> TensorStatistics:
    statistics = TensorStatistics()
    for batch in batches:
        statistics.update(np.asarray(batch, np.float32))
    return statistics


def test_minimum_and_maximum_are_exact() -> None:
    data = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    found = seen(*data)
    assert (found.low, found.high) == (data.min(), data.max())


def test_minimum_and_maximum_see_what_the_histogram_leaves_out() -> None:
    data = np.zeros(4 * SAMPLE, np.float32)
    data[12345], data[54321] = -3, 5
    found = seen(data)
    assert (found.low, found.high) == (-3, 5)
    assert 0 < found.counts.sum() <= SAMPLE


def test_counts_are_numpys() -> None:
    data = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    found = seen(data)
    want, _ = np.histogram(data.astype(np.float64), BINS, (-found.limit, found.limit))
    np.testing.assert_array_equal(found.counts, want)
    assert found.centers()[0] == -found.limit + found.width / 2


@given(st.permutations([0.001, 0.5, 1.0, 7.0, 1000.0]), st.integers(0, 100))
def test_the_order_of_batches_does_not_matter(scales: list[float], seed: int) -> None:
    base = np.random.default_rng(seed).normal(size=200)
    forward = seen(*(base * scale for scale in sorted(scales)))
    shuffled = seen(*(base * scale for scale in scales))
    assert forward.limit == shuffled.limit
    np.testing.assert_array_equal(forward.counts, shuffled.counts)


@given(st.integers(-30, 30))
def test_a_power_of_two_lies_inside(exponent: int) -> None:
    found = seen([2.0**exponent, -(2.0**exponent)])
    assert found.limit == 2.0 ** (exponent + 1)
    assert found.counts.sum() == 2


def test_zeros_first_and_data_later() -> None:
    found = seen(np.zeros(10), np.ones(10), np.full(10, -100))
    assert found.counts.sum() == 30
    assert (found.low, found.high, found.limit) == (-100, 1, 128)


def test_columns_are_sampled_evenly() -> None:
    """A stride that shares a factor with the width would see the same columns again and again."""
    data = np.broadcast_to(np.arange(256, dtype=np.float32), (8 * SAMPLE // 256, 256))
    counts = seen(data).counts
    assert (counts > 0).sum() == 256
    assert counts.max() <= 1.02 * counts[counts > 0].min()


def test_an_empty_batch_changes_nothing() -> None:
    before = seen(np.ones(3))
    before.update(np.zeros((0, 4), np.float32))
    assert before.counts.sum() == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        seen([1.0, bad])


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e30, 3e38])
def test_extreme_magnitudes_are_borne(scale: float) -> None:
    found = seen(np.linspace(-1, 1, 11) * scale)
    assert found.counts.sum() == 11
