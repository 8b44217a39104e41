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
    """Of a tensor's channels: some values (samples, channels), and the lowest and highest of all (channels,)."""

    values: Array
    low: Array
    high: Array

    @property
    def power(self) -> Array:
        """Mean square, (channels,)."""
        return np.asarray(np.square(self.values).mean(0))

    def reach(self, most: float) -> tuple[Array, Array]:
        """How far values lie below and above 0, within `most` root mean squares, (channels,) each."""
        limit = most * np.sqrt(self.power)
        return np.clip(-self.low, 0, limit), np.clip(self.high, 0, limit)

    @property
    def centre(self) -> Array:
        """Half way between the lowest and the highest of `values`, which rarer ones do not move, (channels,)."""
        return np.asarray((self.values.min(0) + self.values.max(0)) / 2)

    def less(self, shift: Array) -> Channels:
        """These less `shift` (channels,)."""
        return Channels(self.values - shift, self.low - shift, self.high - shift)


def sample(graph: Graph, axes: Mapping[str, int], material: Material) -> dict[str, Channels]:
    """What tensors hold on the calibration batches; axes: of their channels, by name of the tensor."""
    run, random = material.compile_run(serialize(with_outputs(graph.model, axes))), np.random.default_rng(material.seed)
    parts: dict[str, list[Array]] = {name: [] for name in axes}
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    for batch in material.batches:
        values = run(batch)
        for name, axis in axes.items():
            by_place = np.moveaxis(values[name], axis, -1)
            places, channels = by_place.size // by_place.shape[-1], by_place.shape[-1]
            others = tuple(range(by_place.ndim - 1))
            low[name] = np.minimum(low.get(name, np.inf), by_place.min(others))
            high[name] = np.maximum(high.get(name, -np.inf), by_place.max(others))
            most = -(-max(LEAST, VALUES // channels) // len(material.batches))
            chosen = random.choice(places, min(most, places), replace=False)
            parts[name].append(by_place[np.unravel_index(chosen, by_place.shape[:-1])])
    return {name: Channels(np.concatenate(some), low[name], high[name]) for name, some in parts.items()}


class Reader:
    """A layer that reads a tensor. used: by channel of it, the largest weight relative to the largest of its output;
    gain: the noise at the outputs, relative and on their average, for a mean squared error of 1 in each channel."""

    def __init__(self, node: ir.Node, channels: Channels) -> None:
        weight, count = read_weight(node).astype(np.float64), len(channels.power)
        self._largest, self._positions = np.abs(weight).max(2), weight.shape[2]
        self._read = np.broadcast_to(read_channels(node, np.arange(count))[..., 0], weight.shape[:2])
        self._spread = channels.values.var(0)
        squares = np.square(weight).sum(2)
        signal = (squares * self._spread[self._read]).sum(1)
        power = (squares * channels.power[self._read]).sum(1)
        signal = np.maximum(signal, CONSTANT * power)
        self._inverse = np.divide(1, signal, out=np.zeros_like(signal), where=signal > 0) / len(signal)
        self.gain, self.used = np.zeros(count), np.zeros(count)
        np.add.at(self.gain, self._read, squares * self._inverse[:, None])
        outputs = self._largest.max(1, keepdims=True)
        relative = np.divide(self._largest, outputs, out=np.zeros_like(self._largest), where=outputs > 0)
        np.maximum.at(self.used, self._read, relative)

    def weight_noise(self, factor: Array) -> float:
        """Of rounding the weights times `factor` (channels,), with a scale for each output; relative, averaged.

        What the channels' means make of it does not count, for biases are corrected by it.
        """
        steps = (self._largest * np.abs(factor)[self._read]).max(1) / affine.S8[1]
        power = self._positions * (self._spread / factor**2)[self._read].sum(1)
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
