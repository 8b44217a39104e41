"""Factors for ranges of least rounding noise: against all signs, ranges of equal size, and factors drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.ptq.channel_noise import Channels, Noise, Reader
from mixq.ptq.channel_ranges import SHARES, common_reach
from mixq.task import Array
from tests.helpers import Net, images

CHANNELS, NO_LIMIT = 6, 1e6


@cache
def reader() -> ir.Node:
    net = Net(CHANNELS, 8, 8)
    output = net.conv(net.conv("x", CHANNELS, "first"), CHANNELS, "reader", groups=CHANNELS)
    return net.graph(output, example=images(3, CHANNELS), ranks=[4]).nodes["reader"]


def noise_of(values: Array) -> Noise:
    channels = Channels(values, np.minimum(values.min(0), 0), np.maximum(values.max(0), 0))
    return Noise(channels, [Reader(reader(), channels)])


def drawn(random: np.random.Generator, *, leaning: float = 0.0) -> Noise:
    """Channels of very different sizes, each leaning to a side of its own."""
    sizes, means = np.exp2(random.uniform(-6, 6, CHANNELS)), leaning * random.normal(0, 1, CHANNELS)
    return noise_of((sizes * random.normal(means, 1, (64, CHANNELS))).astype(np.float32))


def rounding(noises: Sequence[Noise], factor: Array) -> float:
    """The noise of uniform rounding in ranges that just hold the tensors divided by `factor`."""
    total = 0.0
    for noise in noises:
        ends = np.stack([noise.channels.low, noise.channels.high]) / factor
        total += (ends.max() - ends.min()) ** 2 * float((noise.gain * factor**2).sum())
    return total


seeds = given(seed=st.integers(0, 2**31), tensors=st.integers(1, 5), turns=st.booleans())


@settings(deadline=None)
@seeds
def test_common_ranges_are_no_worse_than_equal_ones(seed: int, tensors: int, turns: bool) -> None:
    random = np.random.default_rng(seed)
    noises = [drawn(random, leaning=1.0) for _ in range(tensors)]
    reaches = [np.maximum(*noise.channels.reach(NO_LIMIT)) for noise in noises]
    found = rounding(noises, common_reach(noises, NO_LIMIT, turns))
    assert found <= rounding(noises, np.max([reach / reach.max() for reach in reaches], axis=0)) * 1.001


@settings(deadline=None)
@seeds
def test_turning_channels_over_is_no_worse_than_leaving_them(seed: int, tensors: int, turns: bool) -> None:
    random = np.random.default_rng(seed)
    noises = [drawn(random, leaning=2.0) for _ in range(tensors)]
    upright = common_reach(noises, NO_LIMIT, turns=False)
    assert (upright > 0).all()
    if tensors == 1:
        assert rounding(noises, common_reach(noises, NO_LIMIT, turns=True)) <= rounding(noises, upright) * 1.001


def best_share(noise: Noise, signs: Array) -> float:
    """By all shares, with the channels turned over as `signs` say."""
    below, above = noise.channels.reach(NO_LIMIT)
    down, up = np.where(signs < 0, above, below), np.where(signs < 0, below, above)
    return min(rounding([noise], signs * np.maximum(up, down / share)) for share in SHARES)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31))
def test_the_signs_of_one_tensor_are_the_best_of_all(seed: int) -> None:
    noise = drawn(np.random.default_rng(seed), leaning=2.0)
    best = min(best_share(noise, np.array(signs)) for signs in product((-1, 1), repeat=CHANNELS))
    # A range need not be full: what is minimized is the noise of the whole of it.
    assert rounding([noise], common_reach([noise], NO_LIMIT, turns=True)) <= best * 1.05


def test_channels_on_either_side_of_zero_come_to_lie_on_one() -> None:
    values = np.abs(np.random.default_rng(0).normal(0, 1, (256, CHANNELS))).astype(np.float32)
    signs = np.array([1, -1, -1, 1, -1, 1], np.float32)
    factor = common_reach([noise_of(values * signs)], NO_LIMIT, turns=True)
    assert (np.sign(factor) == signs).all()
    assert rounding([noise_of(values * signs)], factor) == pytest.approx(
        0.25 * rounding([noise_of(values * signs)], np.abs(factor)), rel=0.05
    )


def test_a_channel_without_values_has_no_factor() -> None:
    values = np.random.default_rng(0).normal(0, 1, (64, CHANNELS)).astype(np.float32)
    values[:, 2] = 0
    assert np.flatnonzero(common_reach([noise_of(values)], NO_LIMIT, turns=True) == 0).tolist() == [2]
