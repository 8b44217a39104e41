"""Recipe step "equalize": scale moved between layers, so that the channels of a quantized tensor use its codes alike.

Cross-layer equalization (Nagel et al. 2019, section 4.1) for weights with a scale per channel and activations with one
per tensor: what limits accuracy then are channels much smaller than their tensor's range. As in SmoothQuant (Xiao et
al. 2023, section 4) a channel is divided by r^α / w^(1 − α), with r its largest activation and w its largest weight
among those that read it; α, and whether r counts outliers, is chosen group by group, by the noise at the readers'
outputs. Depthwise readers have a scale for each channel: to them, scale comes for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixq.errors import MixqError
from mixq.graph.branches import with_branch_scales, without_idle_scales
from mixq.graph.layers import row_shapes
from mixq.graph.model import Graph, serialize
from mixq.graph.plan import candidates
from mixq.graph.scaling import ScaleGroup, find_scale_groups, scaled
from mixq.ptq.channel_noise import Channels, Noise, Reader, common_reach, sample
from mixq.ptq.state import Material, Prepared
from mixq.task import Array

ALPHAS = np.linspace(0, 1, 6)
REACHES = (3.0, 1e6)  # root mean squares of a channel that count: beyond lie outliers, which observers may clip
MOST = 2.0**8  # a factor, or its inverse: beyond, FP16 layers of a mix could overflow
SMALLEST = 1e-30
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
        seen = sample(graph, groups, material, tensors)
        noises = [(group, _noises(graph, group, seen)) for group in groups]
        factors = [(group, _factors(found)) for group, found in noises if found]
        equal = without_idle_scales(scaled(graph, factors))
        _check_equal(prepared.graph, equal, material)
        return Prepared(equal, material.observe(equal))


def _factors(noises: Sequence[Noise]) -> Array:
    """One factor a channel, their geometric mean 1; ones where nothing is gained."""
    used = np.max([reader.used for noise in noises for reader in noise.readers], axis=0)
    found = [np.ones(len(used))]
    for most in REACHES:
        reach = common_reach(noises, most)
        alive = (reach > 0) & (used > 0)
        if alive.any():
            found += [_normalized(reach, used, alpha, alive) for alpha in ALPHAS]
    return min(found, key=lambda factor: sum(noise.of(factor) for noise in noises))


def _noises(graph: Graph, group: ScaleGroup, seen: Mapping[str, Channels]) -> list[Noise]:
    """Of each tensor of the group that a layer may read as codes."""
    readers: dict[str, list[Reader]] = {}
    for node in (graph.nodes[name] for name in group.readers):
        tensor = str(node.inputs[0].name) if node.inputs[0] else ""
        if tensor in seen:
            readers.setdefault(tensor, []).append(Reader(node, seen[tensor]))
    return [Noise(seen[tensor], found) for tensor, found in readers.items()]


def _normalized(reach: Array, used: Array, alpha: float, alive: Array) -> Array:
    """r^α / w^(1 − α) with geometric mean 1; 1 for a channel that is always zero or that nobody reads."""
    factor = np.ones(len(reach))
    logs = alpha * np.log(reach[alive]) - (1 - alpha) * np.log(used[alive])
    factor[alive] = np.exp(np.clip(logs - logs.mean(), -np.log(MOST), np.log(MOST)))
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
