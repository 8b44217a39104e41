"""Which factors fit the channels of tensors that share them into ranges of least rounding noise.

Codes are asymmetric: a tensor of which little lies below zero has nearly all of them for what lies above. So a channel
that leans to the other side than most is turned over, by a negative factor, where nothing between writers and readers
minds: a ReLU does. A tensor's range is S above zero and share · S below it; factors are the least that keep everything
within the ranges, and these are found by coordinate descent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixq.ptq.channel_noise import Noise
from mixq.task import Array

SHARES = 2.0 ** np.arange(-7, 7.5, 0.5)
STEPS = (4.0, 2.0, 2**0.5, 2**0.25, 2**0.25)  # times that a range is tried wider and narrower


@dataclass(frozen=True)
class _Ranges:
    """above: of each tensor (tensors,), relative to the others'; shares: what lies below zero relative to it."""

    above: Array
    shares: Array


def common_reach(noises: Sequence[Noise], most: float, turns: bool) -> Array:
    """By channel, the factor that fits all tensors into the ranges of least uniform rounding noise; 0 for a channel
    without values. turns: whether it may be negative. most: root mean squares beyond which outliers lie."""
    below, above = (np.stack(side) for side in zip(*(noise.channels.reach(most) for noise in noises), strict=True))
    gain = np.stack([noise.gain for noise in noises])

    def factors(ranges: _Ranges) -> Array:
        upright, turned = (
            (np.maximum(up, down / ranges.shares[:, None]) / ranges.above[:, None]).max(0)
            for down, up in ((below, above), (above, below))
        )
        return np.where(turned < upright, -turned, upright) if turns else np.asarray(upright)

    def rounding(ranges: _Ranges) -> float:
        spans = ranges.above * (1 + ranges.shares)
        return float((spans**2 * (gain * factors(ranges) ** 2).sum(1)).sum())

    widest = np.maximum(below, above).max(1)
    found = _Ranges(np.where(widest > 0, widest, 1.0), np.ones(len(noises)))
    least = rounding(found)
    for step in STEPS:
        for index in range(len(noises)):
            for tried in _around(found, index, step, turns):
                if (value := rounding(tried)) < least:
                    found, least = tried, value
    return factors(found)


def _around(ranges: _Ranges, index: int, step: float, turns: bool) -> Iterator[_Ranges]:
    """`ranges` with another share of one tensor, then with its range wider and narrower, where it is not alone."""
    for share in SHARES[SHARES <= 1] if turns else SHARES:  # with all channels turned over, a share is its inverse
        yield replace(ranges, shares=_with(ranges.shares, index, share))
    for times in (1 / step, step) if len(ranges.above) > 1 else ():
        yield replace(ranges, above=_with(ranges.above, index, times * ranges.above[index]))


def _with(values: Array, index: int, value: float) -> Array:
    found = values.copy()
    found[index] = value
    return found
