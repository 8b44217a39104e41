"""What rounding a tensor with one scale costs at the outputs of its readers, for any scales of its channels.

An error counts relative to the signal of the output that it reaches: which channels are large and which are small is
what equalization changes, so that it cannot be the measure. All is taken on values of the calibration batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mixq import affine
from mixq.calibration.histogram import TensorStatistics
from mixq.calibration.observers import MSE
from mixq.graph.model import Graph, serialize, with_outputs
from mixq.graph.scaling import read_channels, read_weight
from mixq.ptq.state import Material
from mixq.task import Array

VALUES = 2**17  # of a tensor, that are looked at
LEAST = 2**8  # of a channel
WEIGHT_NOISE = 0.2  # share of the weights' rounding noise that counts: scales and rounding chosen later take the rest
UNIFORM = 1 / 12  # steps²: the variance of rounding
CONSTANT = 1e-6  # of an output's power: variance below tells nothing


@dataclass(frozen=True)
class Channels:
    """Of a tensor's channels: some values (samples, channels), and the largest magnitude of all (channels,)."""

    values: Array
    largest: Array

    @property
    def power(self) -> Array:
        """Mean square, (channels,)."""
        return np.asarray(np.square(self.values).mean(0))

    def reach(self, most: float) -> Array:
        """The largest magnitude within `most` root mean squares, (channels,)."""
        return np.asarray(np.minimum(self.largest, most * np.sqrt(self.power)))


def sample(graph: Graph, axes: Mapping[str, int], material: Material) -> dict[str, Channels]:
    """What tensors hold on the calibration batches; axes: of their channels, by name of the tensor."""
    run, random = material.compile_run(serialize(with_outputs(graph.model, axes))), np.random.default_rng(material.seed)
    parts: dict[str, list[Array]] = {name: [] for name in axes}
    largest: dict[str, Array] = {}
    for batch in material.batches:
        values = run(batch)
        for name, axis in axes.items():
            by_place = np.moveaxis(values[name], axis, -1)
            places, channels = by_place.size // by_place.shape[-1], by_place.shape[-1]
            others = tuple(range(by_place.ndim - 1))
            reached = np.maximum(by_place.max(others), -by_place.min(others))
            largest[name] = np.maximum(largest.get(name, 0.0), reached)
            most = -(-max(LEAST, VALUES // channels) // len(material.batches))
            chosen = random.choice(places, min(most, places), replace=False)
            parts[name].append(by_place[np.unravel_index(chosen, by_place.shape[:-1])])
    return {name: Channels(np.concatenate(some), largest[name]) for name, some in parts.items()}


class Reader:
    """A layer that reads a tensor. used: by channel of it, the largest weight relative to the largest of its output;
    gain: the noise at the outputs, relative and on their average, for a mean squared error of 1 in each channel."""

    def __init__(self, node: ir.Node, channels: Channels) -> None:
        weight, count = read_weight(node).astype(np.float64), len(channels.largest)
        self._largest, self._positions = np.abs(weight).max(2), weight.shape[2]
        self._read = np.broadcast_to(read_channels(node, np.arange(count))[..., 0], weight.shape[:2])
        self._power = channels.power
        squares = np.square(weight).sum(2)
        signal = (squares * channels.values.var(0)[self._read]).sum(1)
        power = (squares * self._power[self._read]).sum(1)
        signal = np.maximum(signal, CONSTANT * power)
        self._inverse = np.divide(1, signal, out=np.zeros_like(signal), where=signal > 0) / len(signal)
        self.gain, self.used = np.zeros(count), np.zeros(count)
        np.add.at(self.gain, self._read, squares * self._inverse[:, None])
        outputs = self._largest.max(1, keepdims=True)
        relative = np.divide(self._largest, outputs, out=np.zeros_like(self._largest), where=outputs > 0)
        np.maximum.at(self.used, self._read, relative)

    def weight_noise(self, factor: Array) -> float:
        """Of rounding the weights times `factor` (channels,), with a scale for each output; relative, averaged."""
        steps = (self._largest * factor[self._read]).max(1) / affine.S8[1]
        power = self._positions * (self._power / factor**2)[self._read].sum(1)
        return float(UNIFORM * (steps**2 * power * self._inverse).sum())


@dataclass(frozen=True)
class Noise:
    """Of a tensor and its readers."""

    channels: Channels
    readers: Sequence[Reader]

    @property
    def gain(self) -> Array:
        """Of all readers, (channels,)."""
        return np.asarray(np.stack([reader.gain for reader in self.readers]).sum(0))

    def of(self, factor: Array) -> float:
        """Of codes for the tensor divided by `factor` (channels,), in the range of least squared error.

        Of the tensor's error its mean a channel does not count, for biases are corrected by it.
        """
        values = self.channels.values * (1 / factor).astype(np.float32)
        statistics = TensorStatistics()
        statistics.update(values)
        qparams = affine.asymmetric(*MSE().range(statistics))
        lost = (affine.fake_quantize(values, qparams, affine.U8) - values).var(0) * factor**2
        from_weights = sum(reader.weight_noise(factor) for reader in self.readers)
        return float((self.gain * lost).sum() + WEIGHT_NOISE * from_weights)


def common_reach(noises: Sequence[Noise], most: float) -> Array:
    """By channel, what a factor has to cover of all tensors, each relative to the range that it is to have.

    In ranges S the largest factors that keep everything within them are max r / S over the tensors; the S of least
    uniform rounding noise are found by coordinate descent.
    """
    reach = np.stack([noise.channels.reach(most) for noise in noises])
    gain = np.stack([noise.gain for noise in noises])
    ranges = reach.max(1)
    ranges = np.where(ranges > 0, ranges, 1.0)

    def rounding(ranges: Array) -> float:
        factor = (reach / ranges[:, None]).max(0)
        return float((ranges**2 * (gain * factor**2).sum(1)).sum())

    least = rounding(ranges)
    for step in (4.0, 2.0, 2**0.5, 2**0.25, 2**0.25) if len(noises) > 1 else ():
        for index in range(len(noises)):
            for times in (1 / step, step):
                tried = ranges.copy()
                tried[index] *= times
                if (value := rounding(tried)) < least:
                    ranges, least = tried, value
    return np.asarray((reach / ranges[:, None]).max(0))
