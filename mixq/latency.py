"""The only timing loop: warm-up, interleaved pairs, medians and their intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

WARM_UP = 5
FEWEST_PAIRS = 20
MOST_PAIRS = 1000
PATIENCE = 2
TIMINGS = 3  # of a pair at most, where the interval stays wide
WIDE = 0.08  # of the median: the best is told from others by the bad end of its interval


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedLatency:
    """Milliseconds of reference and candidate, and the ratio reference ÷ candidate of each pair (the speed-up).

    noisy: the interval of the speed-up is too wide for the median to be relied on.
    """

    reference: Interval
    candidate: Interval
    speedup: Interval
    pairs: int
    noisy: bool = False

    @property
    def width(self) -> float:
        """Of the interval of the speed-up, relative to the median."""
        return (self.speedup.high - self.speedup.low) / self.speedup.median


def measure_pair(
    reference: Callable[[], None],
    candidate: Callable[[], None],
    budget_s: float = 0.1,
    look: Callable[[PairedLatency], None] | None = None,
) -> PairedLatency:
    """Time both in turn, A B B A A B …, for about `budget_s` seconds and at least FEWEST_PAIRS pairs.

    Interleaving lets a drift of the machine's speed hit both alike; the ratio is taken pair by pair. On a noisy
    machine, where the interval of the speed-up stays wide, up to PATIENCE times the budget is spent, and all of it
    TIMINGS times, unless calls are so slow that this takes longer; the narrowest counts, marked as noisy. `look` is
    shown what is known each time that the number of pairs has doubled; it may raise.
    """
    end = time.perf_counter() + TIMINGS * PATIENCE * budget_s
    narrowest = _measured(reference, candidate, budget_s, look)
    for _ in range(1, TIMINGS):
        if narrowest.width <= WIDE or time.perf_counter() >= end:
            break
        narrowest = min(narrowest, _measured(reference, candidate, budget_s, look), key=lambda found: found.width)
    return replace(narrowest, noisy=narrowest.width > WIDE)


def _measured(
    reference: Callable[[], None],
    candidate: Callable[[], None],
    budget_s: float,
    look: Callable[[PairedLatency], None] | None,
) -> PairedLatency:
    for _ in range(WARM_UP):
        reference()
        candidate()
    times: list[tuple[float, float]] = []
    next_look = FEWEST_PAIRS
    start = time.perf_counter()
    for spent in range(1, PATIENCE + 1):
        most = len(times) + MOST_PAIRS
        while len(times) < FEWEST_PAIRS or (time.perf_counter() < start + spent * budget_s and len(times) < most):
            times.append(_pair(reference, candidate, candidate_first=len(times) % 2 == 1))
            if look is not None and len(times) == next_look:
                next_look *= 2
                look(_summed_up(times))
        found = _summed_up(times)
        if found.width <= WIDE:
            break
    return found


def _summed_up(times: Sequence[tuple[float, float]]) -> PairedLatency:
    a, b = 1e3 * np.array(times).T
    return PairedLatency(median_interval(a), median_interval(b), median_interval(a / b), len(times))


def median_interval(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> Interval:
    """The median with its distribution-free 95 % interval from order statistics (Conover 1999, section 3.2)."""
    ordered = np.sort(np.asarray(values, np.float64))
    outer = _outer_values(len(ordered))
    return Interval(float(np.median(ordered)), float(ordered[outer]), float(ordered[-1 - outer]))


def _outer_values(count: int) -> int:
    """How many of `count` ordered values may be left out at either end.

    The number of values below the true median is binomial with p = ½; each end may miss it in 2.5 % of all samples.
    """
    rank, ways, below = 0, 1, 1  # of the 2 ** count outcomes: those with `rank` values below, and with at most `rank`
    while 40 * below <= 2**count:
        rank += 1
        ways = ways * (count - rank + 1) // rank
        below += ways
    return max(rank - 1, 0)


def _pair(reference: Callable[[], None], candidate: Callable[[], None], candidate_first: bool) -> tuple[float, float]:
    if candidate_first:
        second = _timed(candidate)
        return _timed(reference), second
    first = _timed(reference)
    return first, _timed(candidate)


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
