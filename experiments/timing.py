"""Latency of two models against each other, over several compiled copies of each.

Copies of one model differ by up to 1 % for as long as they live, by where their weights and buffers happen to lie; a
comparison of two copies cannot see that, however long it takes.
"""

import math
import statistics
from collections.abc import Callable, Sequence

from mixq.latency import Interval, PairedLatency, measure_pair
from mixq.runtimes import Executable
from mixq.task import Inputs

STUDENT_T = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""The 97.5 % point of Student's t for so many copies (one degree of freedom less)."""

Compile = Callable[[], Executable]


def measure_copies(
    reference: Compile, candidate: Compile, example: Inputs, seconds: float, copies: int = 5
) -> PairedLatency:
    """As `mixq.latency.measure_pair`, for `seconds` in all.

    The ratio is the geometric mean over the copies, its interval Student's over their medians: what a further copy may
    turn out to be is in it.
    """
    alive: list[tuple[Executable, Executable]] = []  # a freed copy would leave its place to the next one
    found = []
    for _ in range(copies):
        alive.append((reference(), candidate()))
        first, second = (executable.bind(example) for executable in alive[-1])
        found.append(measure_pair(first, second, seconds / copies))
    return PairedLatency(
        _over_copies([pair.reference.median for pair in found]),
        _over_copies([pair.candidate.median for pair in found]),
        _over_copies([pair.speedup.median for pair in found]),
        sum(pair.pairs for pair in found),
    )


def _over_copies(medians: Sequence[float]) -> Interval:
    logarithms = [math.log(median) for median in medians]
    middle = statistics.mean(logarithms)
    half = STUDENT_T[len(medians)] * statistics.stdev(logarithms) / math.sqrt(len(medians))
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def geometric_mean(ratios: Sequence[Interval]) -> Interval:
    """With the interval that independent errors of the single ratios make: half widths of logarithms in quadrature."""
    middle = sum(math.log(ratio.median) for ratio in ratios) / len(ratios)
    half = math.hypot(*(math.log(ratio.high / ratio.low) / 2 for ratio in ratios)) / len(ratios)
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
