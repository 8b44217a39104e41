"""Recipe step "equalize": scale moved between layers, so that the channels of a quantized tensor use its codes alike.

Cross-layer equalization (Nagel et al. 2019, section 4.1) for weights with a scale per channel and activations with one
per tensor: what limits accuracy then are channels much smaller than their tensor's range. As in SmoothQuant (Xiao et
al. 2023, section 4) a channel is divided by r^α / w^(1 − α), with r its largest activation and w its largest weight
among those that read it; α, and whether r counts outliers, is chosen group by group, by the noise at the readers'
outputs. Depthwise readers have a scale for each channel: to them, scale comes for nothing. Where what they read shares
its factors with other tensors, or has none, it gets its own on the branch to them (`branches.py`).

Codes are asymmetric, so that it counts on which side of zero a channel lies: where all between writers and readers is
linear, channels are turned over (`channel_ranges.py`), and where no reader pads, shifted to lie about zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mixq.errors import MixqError
from mixq.graph.branches import depthwise_scales, with_branch_scales, without_idle_scales, without_scales
from mixq.graph.layers import row_shapes
from mixq.graph.model import Graph, serialize
from mixq.graph.plan import candidates
from mixq.graph.scaling import ScaleGroup, find_scale_groups, scaled
from mixq.graph.shifting import find_shift_places, shifted
from mixq.ptq.channel_noise import Channels, Noise, Reader, sample
from mixq.ptq.channel_ranges import common_reach
from mixq.ptq.state import Material, Prepared
from mixq.task import Array

ALPHAS = np.linspace(0, 1, 6)
REACHES = (3.0, 1e6)  # root mean squares of a channel that count: beyond lie outliers, which observers may clip
MOST = 2.0**8  # a factor, or its inverse: beyond, FP16 layers of a mix could overflow
SMALLEST = 1e-30
WORTH = 0.7  # of the noise is left at most where a depthwise layer's input gets a scale of its own
TOLERANCE = 1e-3  # of the largest output, as at capture


@dataclass(frozen=True)
class Equalize:
    """Takes in layers, residual additions and normalizations with only ReLU, pooling and the like between them."""

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """An equal network, and its statistics. Raises MixqError should it not compute the same."""
        whole = with_branch_scales(prepared.graph)
        branches = depthwise_scales(whole)
        found = _Sampled.of(without_scales(whole, branches), branches.values(), material).centred()
        if material.placement.scales_fuse:
            found = found.branched()
        equal = without_idle_scales(scaled(found.graph, list(found.factors)))
        _check_equal(prepared.graph, equal, material)
        return Prepared(equal, material.observe(equal))


@dataclass(frozen=True)
class _Sampled:
    """A graph; shapes: of its tensors, of one row; seen: what those hold that a layer may read as codes."""

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    seen: Mapping[str, Channels]

    @classmethod
    def of(cls, graph: Graph, convolved: Iterable[str], material: Material) -> _Sampled:
        """convolved: tensors, in groups or not, whose channels lie along the axis 1."""
        shapes = row_shapes(graph.model, material.batches[0])
        axes = dict.fromkeys(convolved, 1)
        axes |= {name: group.axis for group in find_scale_groups(graph, shapes) for name in group.tensors}
        read = [name for name in candidates(graph, material.placement) if name in axes]
        return cls(graph, shapes, sample(graph, {name: axes[name] for name in read}, material))

    @cached_property
    def groups(self) -> Sequence[ScaleGroup]:
        return find_scale_groups(self.graph, self.shapes)

    @cached_property
    def factors(self) -> Sequence[tuple[ScaleGroup, Array]]:
        """Of the channels of each group of which a layer may read codes."""
        groups = [(group, self._noises(group.readers)) for group in self.groups]
        return [(group, _factors(noises, group.turns)) for group, noises in groups if noises]

    def centred(self) -> _Sampled:
        """With the channels about zero of those tensors that lose noise by it."""
        shifts = []
        for place in find_shift_places(self.graph, self.groups):
            for noise in self._noises(place.readers):
                shift = noise.channels.centre
                (moved,) = self._less({place.tensor: shift})._noises(place.readers)
                if moved.of(_factors([moved], turns=True)) < noise.of(_factors([noise], turns=True)):
                    shifts.append((place, shift))
        found = self._less({place.tensor: shift for place, shift in shifts})
        return replace(found, graph=shifted(self.graph, shifts))

    def _less(self, shifts: Mapping[str, Array]) -> _Sampled:
        """As it is, but for what the tensors hold."""
        return replace(self, seen={**self.seen, **{name: self.seen[name].less(by) for name, by in shifts.items()}})

    def branched(self) -> _Sampled:
        """With those scales before depthwise layers that take enough noise away."""
        whole = with_branch_scales(self.graph)
        branches = depthwise_scales(whole)
        shared = {name: factor for group, factor in self.factors for name in group.tensors}
        kept = {}
        for scale, tensor in branches.items():
            readers = [str(reader.name) for reader, _ in whole.nodes[scale].outputs[0].uses()]
            for noise in self._noises(readers):
                ones = np.ones(len(noise.gain))
                if noise.of(_factors([noise], turns=True)) < WORTH * noise.of(shared.get(tensor, ones)):
                    kept[scale] = tensor
        return _Sampled(
            without_scales(whole, branches.keys() - kept.keys()),
            {**self.shapes, **{scale: self.shapes[tensor] for scale, tensor in kept.items()}},
            {**self.seen, **{scale: self.seen[tensor] for scale, tensor in kept.items()}},
        )

    def _noises(self, nodes: Iterable[str]) -> list[Noise]:
        """Of each tensor that layers among `nodes` may read as codes."""
        readers: dict[str, list[Reader]] = {}
        for layer in (self.graph.by_name[name] for name in nodes if name in self.graph.by_name):
            if layer.input in self.seen:
                reader = Reader(self.graph.nodes[layer.name], self.seen[layer.input])
                readers.setdefault(layer.input, []).append(reader)
        return [Noise(self.seen[tensor], found) for tensor, found in readers.items()]


def _factors(noises: Sequence[Noise], turns: bool) -> Array:
    """One factor a channel, the geometric mean of their magnitudes 1; ones where nothing is gained."""
    used = np.max([reader.used for noise in noises for reader in noise.readers], axis=0)
    found = [np.ones(len(used))]
    for most in REACHES:
        reach = common_reach(noises, most, turns)
        alive = (reach != 0) & (used > 0)
        if alive.any():
            found += [_normalized(reach, used, alpha, alive) for alpha in ALPHAS]
    return min(found, key=lambda factor: sum(noise.of(factor) for noise in noises))


def _normalized(reach: Array, used: Array, alpha: float, alive: Array) -> Array:
    """±r^α / w^(1 − α) with geometric mean 1; 1 for a channel that is always zero or that nobody reads."""
    factor = np.ones(len(reach))
    logs = alpha * np.log(np.abs(reach[alive])) - (1 - alpha) * np.log(used[alive])
    factor[alive] = np.sign(reach[alive]) * np.exp(np.clip(logs - logs.mean(), -np.log(MOST), np.log(MOST)))
    return factor


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
