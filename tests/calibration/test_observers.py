"""Observers against closed forms and brute force; what all of them promise, over the table."""

from __future__ import annotations

import numpy as np
import pytest

from mixq import affine
from mixq.calibration import OBSERVERS, TensorStatistics, get_observer
from mixq.calibration.observers import MSE, Entropy, Function, MinMax, Percentile
from mixq.errors import InputError
from mixq.task import Array

RANDOM = np.random.default_rng(0)
DATA = {
    "normal": RANDOM.normal(size=100_000),
    "half": np.maximum(RANDOM.normal(size=100_000), 0),
    "heavy": RANDOM.standard_t(2, size=100_000),
    "uniform": RANDOM.uniform(-3, 1, size=100_000),
    "shifted": RANDOM.normal(5, 0.5, size=100_000),
}
data = pytest.mark.parametrize("values", [v.astype(np.float32) for v in DATA.values()], ids=list(DATA))


def statistics(values: Array) -> TensorStatistics:
    found = TensorStatistics()
    for batch in np.array_split(values, 7):
        found.update(batch)
    return found


def squared_error(values: Array, low: float, high: float) -> float:
    """Of values rounded to u8 in [low, high]."""
    back = affine.fake_quantize(values, affine.asymmetric(low, high), affine.U8)
    return float(np.mean((values.astype(np.float64) - back) ** 2))


@pytest.mark.parametrize("name", OBSERVERS)
@data
def test_ranges_lie_within_what_was_seen(name: str, values: Array) -> None:
    low, high = get_observer(name).range(statistics(values))
    assert min(float(values.min()), 0) <= low <= high <= max(float(values.max()), 0)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-30])
def test_constants_have_a_range(name: str, value: float) -> None:
    low, high = get_observer(name).range(statistics(np.full(100, value, np.float32)))
    back = affine.fake_quantize(np.array([value], np.float32), affine.asymmetric(low, high), affine.U8)
    assert abs(back[0] - np.float32(value)) <= abs(value) * 0.01 + 1e-15


@data
def test_minmax_is_exact(values: Array) -> None:
    assert MinMax().range(statistics(values)) == (values.min(), values.max())


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 99.99])
@data
def test_percentiles_are_numpys_to_a_bin(values: Array, percent: float) -> None:
    found = statistics(values)
    tail = (100 - percent) / 2
    want = np.percentile(values, [tail, 100 - tail], method="inverted_cdf")
    np.testing.assert_allclose(Percentile(percent).range(found), want, atol=1.001 * found.width)


@data
def test_all_percent_is_minmax(values: Array) -> None:
    assert Percentile(100.0).range(statistics(values)) == MinMax().range(statistics(values))


@data
def test_mse_is_not_worse_than_minmax(values: Array) -> None:
    chosen = squared_error(values, *MSE().range(statistics(values)))
    assert chosen <= 1.001 * squared_error(values, values.min(), values.max())


@pytest.mark.parametrize("name", ["half", "heavy"])
def test_mse_comes_near_the_best_of_all_ranges(name: str) -> None:
    values = DATA[name].astype(np.float32)
    ends = np.linspace(0.02, 1, 60)
    best = min(squared_error(values, values.min() * a, values.max() * b) for a in ends[::4] for b in ends)
    assert squared_error(values, *MSE().range(statistics(values))) <= 1.15 * max(best, 1e-9)


def test_mse_clips_an_outlier_that_costs_more_than_it_is_worth() -> None:
    values = np.append(RANDOM.uniform(0, 1, 500_000), 3.0).astype(np.float32)
    _, high = MSE().range(statistics(values))
    assert high < 2


def leaky(values: Array) -> Array:
    return np.where(values < 0, 0.1 * values, values)


@pytest.mark.parametrize("read", [None, leaky], ids=["itself", "leaky"])
@data
def test_mse_finds_what_going_through_all_bins_and_ends_finds(values: Array, read: Function | None) -> None:
    found = statistics(values)
    centers = np.clip(found.centers(), found.low, found.high)
    reading = read or np.asarray

    def error(low: float, high: float) -> float:
        back = affine.fake_quantize(centers, affine.asymmetric(low, high), affine.U8).astype(np.float64)
        return float(found.counts @ np.square(reading(centers) - reading(back)))

    low, high, fractions = min(found.low, 0.0), max(found.high, 0.0), np.linspace(1, 0.3, 40)
    for _ in range(2):
        high = min(high * fractions, key=lambda end: error(low, end))
        low = min(low * fractions, key=lambda end: error(end, high))
    assert error(*MSE().range(found, read)) == pytest.approx(error(low, high), rel=1e-3)


@pytest.mark.parametrize(("name", "share"), [("normal", 1.001), ("uniform", 1.001), ("heavy", 0.7)])
def test_mse_weighs_errors_behind_the_function_that_reads_the_tensor(name: str, share: float) -> None:
    values = DATA[name]
    found = statistics(values.astype(np.float32))

    def error_behind(low: float, high: float) -> float:
        back = affine.fake_quantize(values, affine.asymmetric(low, high), affine.U8)
        return float(np.mean((leaky(values) - leaky(back)) ** 2))

    assert error_behind(*MSE().range(found, leaky)) < share * error_behind(*MSE().range(found))


def test_entropy_keeps_a_uniform_distribution_whole() -> None:
    low, high = Entropy().range(statistics(DATA["uniform"].astype(np.float32)))
    assert (high - low) > 0.95 * 4


def test_entropy_is_the_least_divergence_by_brute_force() -> None:
    values = RANDOM.laplace(size=20_000).astype(np.float32)
    found = statistics(values)
    low, high = Entropy(steps=16).range(found)
    fractions = np.linspace(1, 0.25, 16)
    divergences = [divergence(found, found.low * f, found.high * f) for f in fractions]
    best = fractions[int(np.argmin(divergences))]
    assert (low, high) == pytest.approx((found.low * best, found.high * best))
    assert best < 1


def divergence(found: TensorStatistics, low: float, high: float) -> float:
    """KL(clipped ‖ quantized) bin by bin, written as in Migacz 2017 with loops."""
    qparams = affine.asymmetric(low, high)
    centers = np.clip(found.centers(), found.low, found.high)
    bins = [(c, float(n)) for c, n in zip(centers, found.counts, strict=True) if n]
    kept = [(c, n) for c, n in bins if low <= c <= high]
    reference = [n for _, n in kept]
    reference[0] += sum(n for c, n in bins if c < low)
    reference[-1] += sum(n for c, n in bins if c > high)
    codes = [int(affine.codes(c, float(qparams.scale), int(qparams.zero_point), affine.U8)) for c, _ in kept]
    by_code: dict[int, list[float]] = {}
    for code, (_, n) in zip(codes, kept, strict=True):
        by_code.setdefault(code, []).append(n)
    spread = [sum(by_code[code]) / len(by_code[code]) for code in codes]
    p, q = np.array(reference) / sum(reference), np.array(spread) / sum(spread)
    return float(np.sum(p * np.log(p / q)))


def test_unknown_observers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'median' is unknown; known: minmax, percentile, mse, entropy"):
        get_observer("median")
