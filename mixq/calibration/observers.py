"""Observers: from the statistics of a tensor, the range [low, high] that its codes are to cover."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixq import affine
from mixq.calibration.histogram import TensorStatistics
from mixq.task import Array

Function = Callable[[Array], Array]

INEXACT = 1e-13  # of the values' own squares


class Observer(ABC):
    """Chooses the range of one tensor."""

    @abstractmethod
    def range(self, statistics: TensorStatistics, read_by: Function | None = None) -> tuple[float, float]:
        """(low, high) with low ≤ high; `statistics` has seen at least one batch.

        read_by: the elementwise function that is all that reads the tensor, where there is one. An observer that
        weighs errors weighs them behind it: what LeakyRelu shrinks may be rounded and clipped the more.
        """


@dataclass(frozen=True)
class MinMax(Observer):
    """Everything seen: no clipping."""

    def range(self, statistics: TensorStatistics, read_by: Function | None = None) -> tuple[float, float]:
        return statistics.low, statistics.high


@dataclass(frozen=True)
class Percentile(Observer):
    """Leaves out the outermost values: `percent` of all lie inside, the rest is clipped in equal parts."""

    percent: float = 99.99

    def range(self, statistics: TensorStatistics, read_by: Function | None = None) -> tuple[float, float]:
        share = np.cumsum(statistics.counts) / max(int(statistics.counts.sum()), 1)
        tail = (100 - self.percent) / 200
        edges = np.arange(1, len(share) + 1) * statistics.width - statistics.limit
        low = edges[int(np.searchsorted(share, tail, side="right"))] - statistics.width
        high = edges[min(int(np.searchsorted(share, 1 - tail)), len(edges) - 1)]
        return max(statistics.low, float(low)), min(statistics.high, float(high))


@dataclass(frozen=True)
class MSE(Observer):
    """The range of least mean squared error between values and their codes: rounding inside, clipping outside.

    Searched over `steps` fractions of each end in turn, twice; the error is taken on the histogram.
    """

    steps: int = 40

    def range(self, statistics: TensorStatistics, read_by: Function | None = None) -> tuple[float, float]:
        errors = _SquaredErrors(*_occupied(statistics), read_by or _itself)
        low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
        fractions = np.linspace(1.0, 0.3, self.steps)
        for _ in range(2):
            high *= fractions[np.argmin(errors.of(low, high * fractions))]  # of equals the first, which is the widest
            low *= fractions[np.argmin(errors.of(low * fractions, high))]
        return float(low), float(high)


@dataclass(frozen=True)
class Entropy(Observer):
    """The clipping of least Kullback–Leibler divergence between the values' distribution and that of their codes.

    TensorRT's calibration (Migacz 2017), for asymmetric ranges: both ends are clipped by one fraction. Values beyond
    the range count into its outermost bins; the codes' distribution spreads each code's mass over its occupied bins.
    """

    steps: int = 64

    def range(self, statistics: TensorStatistics, read_by: Function | None = None) -> tuple[float, float]:
        centers, weights = _occupied(statistics)
        low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
        fractions = np.linspace(1.0, 0.25, self.steps)  # among equals, the widest
        best = float(min(fractions, key=lambda f: _divergence(centers, weights, low * f, high * f)))
        return low * best, high * best


def _occupied(statistics: TensorStatistics) -> tuple[Array, Array]:
    """Middles and counts of the bins in use; the outermost middles may lie beyond all values."""
    used = statistics.counts > 0
    centers = np.clip(statistics.centers()[used], statistics.low, statistics.high)
    return centers, statistics.counts[used].astype(np.float64)


def _itself(values: Array) -> Array:
    return values


class _SquaredErrors:
    """What is lost of a histogram by codes of some range.

    All values of one code are read back as one, so that the squared error of a code follows from its values' count,
    sum and sum of squares, and these from sums over all values up to its borders: the bins are gone through once.
    """

    def __init__(self, centers: Array, weights: Array, read: Function) -> None:
        wanted = read(centers)
        self._centers, self._read = centers, read
        powers = (weights, weights * wanted, weights * wanted**2)
        self._counts, self._sums, self._squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in powers)

    def of(self, low: Array | float, high: Array | float) -> Array:
        """Between what the function makes of the values and of their codes, of every range [low, high].

        What cannot be told from rounding in these sums is 0, so that equal ranges are equally good.
        """
        scale, zero_point = (each[:, None].astype(np.float64) for each in affine.scale_and_zero_point(low, high))
        codes = np.arange(affine.U8[0], affine.U8[1] + 1)
        back = self._read(affine.values(codes, scale, zero_point))
        borders = np.searchsorted(self._centers, affine.values(codes[:-1] + 0.5, scale, zero_point))
        ends = np.pad(borders, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(self._centers))))
        counts, sums, squares = (np.diff(so_far[ends]) for so_far in (self._counts, self._sums, self._squares))
        found = (squares - 2 * back * sums + back**2 * counts).sum(1)
        return np.where(found > INEXACT * self._squares[-1], found, 0.0)


def _divergence(centers: Array, weights: Array, low: float, high: float) -> float:
    qparams = affine.asymmetric(low, high)
    codes = affine.codes(centers, float(qparams.scale), int(qparams.zero_point), affine.U8).astype(np.int64)
    inside = (centers >= low) & (centers <= high)
    if not inside.any():
        return np.inf
    reference = weights.copy()
    first, last = np.flatnonzero(inside)[[0, -1]]
    reference[first] += weights[:first].sum()
    reference[last] += weights[last + 1 :].sum()
    reference, kept = reference[first : last + 1], weights[first : last + 1]
    codes = codes[first : last + 1]
    mass = np.bincount(codes, weights=kept, minlength=256)
    occupied = np.bincount(codes, minlength=256)
    spread = mass[codes] / occupied[codes]
    p, q = reference / reference.sum(), spread / spread.sum()
    return float(np.sum(p * np.log(p / q)))
