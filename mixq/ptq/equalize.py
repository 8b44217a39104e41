"""Recipe step "equalize": scale moved between layers, so that the channels of a quantized tensor use its codes alike.

Cross-layer equalization (Nagel et al. 2019, section 4.1) for weights with a scale per channel and activations with one
per tensor: what limits accuracy then are channels much smaller than their tensor's range. As in SmoothQuant (Xiao et
al. 2023, section 4) a channel is divided by r^α / w^(1 − α), with r its largest activation and w its largest weight
among those that read it; α is chosen group by group, as the rounding noise at the readers' outputs wants it. Depthwise
readers have a scale for each channel: to them, scale comes for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mixq import affine
from mixq.errors import MixqError
from mixq.graph.branches import with_branch_scales, without_idle_scales
from mixq.graph.layers import row_shapes
from mixq.graph.model import Graph, serialize, with_outputs
from mixq.graph.plan import candidates
from mixq.graph.scaling import ScaleGroup, find_scale_groups, read_channels, read_weight, scaled
from mixq.ptq.state import Material, Prepared
from mixq.task import Array

ALPHAS = np.linspace(0, 1, 11)
MOST = 2.0**8  # a factor, or its inverse: beyond, FP16 layers of a mix could overflow
SMALLEST = 1e-30
REACH = 3.0  # root mean squares of a channel: beyond lie outliers, which observers clip
WEIGHT_NOISE = 0.2  # share of the weights' rounding noise that counts: scales and rounding chosen later take the rest
TOLERANCE = 1e-3  # of the largest output, as at capture


@dataclass(frozen=True)
class Equalize:
    """Takes in layers, residual additions and normalizations with only ReLU, pooling and the like between them."""

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """An equal network, and its statistics. Raises MixqError should it not compute the same."""
        graph = with_branch_scales(prepared.graph)
        shapes = row_shapes(graph.model, material.batches[0])
        tensors = set(candidates(graph, material.placement))
        groups = [group for group in find_scale_groups(graph, shapes) if not tensors.isdisjoint(group.tensors)]
        seen = _observe(graph, groups, material, tensors)
        factors = [(group, self._factors(graph, group, found)) for group, found in zip(groups, seen, strict=True)]
        equal = without_idle_scales(scaled(graph, factors))
        _check_equal(prepared.graph, equal, material)
        return Prepared(equal, material.observe(equal))

    def _factors(self, graph: Graph, group: ScaleGroup, seen: Channels) -> Array:
        """One factor a channel, their geometric mean 1; ones where nothing is gained."""
        nodes = [graph.nodes[name] for name in group.readers]
        readers = [Reader(read_weight(node), partial(read_channels, node)) for node in nodes]
        reach = np.maximum(seen.high, -seen.low)
        used = _largest_weights(readers, len(reach))
        alive = (reach > 0) & (used > 0)
        if not alive.any():
            return np.ones(len(reach))
        found = [_normalized(reach, used, alpha, alive) for alpha in ALPHAS]
        return min([np.ones(len(reach)), *found], key=lambda factor: self._noise(readers, seen, factor))

    def _noise(self, readers: Sequence[Reader], seen: Channels, factor: Array) -> float:
        """Of rounding tensor and weights to the nearest, at the readers' outputs, relative to the signal there."""
        step = ((seen.high / factor).max() - (seen.low / factor).min()) / 255
        total = 0.0
        for reader in readers:
            weight = reader.weight * reader.by_channel(factor)
            power = np.broadcast_to(reader.by_channel(seen.square / factor**2), weight.shape)
            from_data = step**2 * np.square(weight).sum()
            steps = np.abs(weight).max((1, 2)) / affine.S8[1]
            from_weight = WEIGHT_NOISE * (steps**2 * power.sum((1, 2))).sum()
            total += float((from_data + from_weight) / ((np.square(weight) * power).sum() or 1.0))
        return total


@dataclass(frozen=True)
class Reader:
    """weight: (outputs, channels that one reads, positions); by_channel lays values by channel out like it."""

    weight: Array
    by_channel: Callable[[Array], Array]


@dataclass
class Channels:
    """Of each channel: the smallest value seen (at most 0), the largest (at least 0), the mean square."""

    low: Array
    high: Array
    square: Array


def _largest_weights(readers: Sequence[Reader], channels: int) -> Array:
    """By channel, the largest weight that reads it, relative to the largest of its output."""
    found = np.zeros(channels)
    index = np.arange(channels)
    for reader in readers:
        relative = np.abs(reader.weight).max(2) / np.maximum(np.abs(reader.weight).max((1, 2)), SMALLEST)[:, None]
        places = np.broadcast_to(reader.by_channel(index)[..., 0], relative.shape)
        np.maximum.at(found, places, relative)
    return found


def _normalized(reach: Array, used: Array, alpha: float, alive: Array) -> Array:
    """r^α / w^(1 − α) with geometric mean 1; 1 for a channel that is always zero or that nobody reads."""
    factor = np.ones(len(reach))
    logs = alpha * np.log(reach[alive]) - (1 - alpha) * np.log(used[alive])
    factor[alive] = np.exp(np.clip(logs - logs.mean(), -np.log(MOST), np.log(MOST)))
    return factor


def _observe(graph: Graph, groups: Sequence[ScaleGroup], material: Material, tensors: Container[str]) -> list[Channels]:
    """Of each group, what its quantizable tensors hold on the calibration batches, channel by channel."""
    wanted = {group: [name for name in group.tensors if name in tensors] for group in groups}
    names = [name for found in wanted.values() for name in found]
    run = material.compile_run(serialize(with_outputs(graph.model, names)))
    seen = {g: Channels(np.zeros(g.channels), np.zeros(g.channels), np.zeros(g.channels)) for g in groups}
    for batch in material.batches:
        values = run(batch)
        for group, found in seen.items():
            for name in wanted[group]:
                by_channel = np.moveaxis(values[name], group.axis, 0).reshape(group.channels, -1)
                found.low = np.minimum(found.low, by_channel.min(1))
                found.high = np.maximum(found.high, by_channel.max(1))
                found.square += (
                    np.square(by_channel, dtype=np.float32).mean(1) / len(material.batches) / len(wanted[group])
                )
    return [_without_outliers(found) for found in seen.values()]


def _without_outliers(seen: Channels) -> Channels:
    reach = REACH * np.sqrt(seen.square)
    return Channels(np.maximum(seen.low, -reach), np.minimum(seen.high, reach), seen.square)


def _check_equal(graph: Graph, equal: Graph, material: Material) -> None:
    """Raises MixqError where the outputs differ on a calibration batch."""
    batch = material.batches[0]
    before, after = (material.compile_run(serialize(one.model))(batch) for one in (graph, equal))
    for name, want in before.items():
        error = float(np.abs(after[name] - want).max() / max(float(np.abs(want).max()), SMALLEST))
        if not error <= TOLERANCE:
            raise MixqError(
                f"equalize changed the output {name!r} by {error:.1e} of its largest value; leave the step out"
            )
