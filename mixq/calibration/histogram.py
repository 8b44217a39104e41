"""TensorStatistics: minimum, maximum and a histogram of one tensor, updated batch by batch in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from mixq.errors import InputError
from mixq.task import Array

BINS = 4096
SMALLEST = 2.0**-40  # limit
SAMPLE = 2**18  # values of a batch that enter the histogram at most; minimum and maximum see all of them


@dataclass
class TensorStatistics:
    """Counts over [−limit, limit) in BINS equal bins; `limit` is a power of two and doubles when data exceeds it.

    Doubling merges neighboring bins, so that no count is ever re-estimated, whatever the order of the batches.
    """

    low: float = np.inf
    high: float = -np.inf
    limit: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def update(self, values: Array) -> None:
        """Add a batch of any shape, an empty one too. Raises InputError where it holds NaN or infinity."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("an activation is NaN or infinite on the calibration inputs; check model and inputs")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(abs(low), abs(high)))
        self._count(values.reshape(-1)[:: _stride(values.size)])

    @property
    def width(self) -> float:
        """Of one bin."""
        return 2 * self.limit / BINS

    def centers(self) -> Array:
        """The middle of every bin, float64."""
        return (np.arange(BINS) + 0.5) * self.width - self.limit

    def _grow(self, magnitude: float) -> None:
        if self.limit == 0.0:
            self.limit = max(2.0 ** np.ceil(np.log2(magnitude)), SMALLEST) if magnitude > 0 else SMALLEST
        while self.limit <= magnitude:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.limit *= 2

    def _count(self, values: Array) -> None:
        # Scaling by a power of two is exact, so a value on a bin's edge falls on the same side whatever the limit is.
        index = np.floor(values * np.float32(BINS / (2 * self.limit))).astype(np.int32) + BINS // 2
        self.counts += np.bincount(index, minlength=BINS)


def _stride(size: int) -> int:
    """At most SAMPLE values of `size`; prime to it, or rows and columns of a tensor would be seen in part only."""
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride
