"""What recipe steps work on (Material) and hand to one another (Prepared)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mixq import affine
from mixq.affine import QParams
from mixq.calibration import Statistics, collect
from mixq.graph.model import CompileRun, Graph
from mixq.graph.placement import Placement
from mixq.graph.plan import candidates
from mixq.task import Array, Inputs

Range = tuple[float, float]


@dataclass(frozen=True)
class Prepared:
    """A network after some steps of a recipe: the same function in FP32, and what is known for its INT8 layers.

    graph: with rescaled weights where a step moved scales between layers; statistics: of its tensors. ranges: what the
    codes of each quantizable tensor are to cover; magnitudes: by layer, the largest weight that has a code, one a
    channel, or (0-d) one of the tensor; values: by (layer, input index), weights (1) and biases (2) that replace the
    graph's own in INT8.
    """

    graph: Graph
    statistics: Statistics
    ranges: Mapping[str, Range] = field(default_factory=dict)
    magnitudes: Mapping[str, Array] = field(default_factory=dict)
    values: Mapping[tuple[str, int], Array] = field(default_factory=dict)

    def own_weight(self, layer: str) -> Array:
        """The weight that the layer has in FP32."""
        return self.graph.weight(self.graph.by_name[layer].weight)

    def weight(self, layer: str) -> Array:
        """The weight that the layer has in INT8, rounded or not yet."""
        found = self.graph.by_name[layer]
        return self._value(layer, found.weight_index, found.weight)

    def weight_qparams(self, layer: str) -> QParams:
        """The qparams of the layer's weight."""
        return self.qparams_of(layer, self.magnitudes[layer])

    def qparams_of(self, layer: str, magnitude: Array) -> QParams:
        """Those of the layer's weight for magnitudes a channel, or one of the tensor (0-d)."""
        return affine.symmetric(magnitude, self.graph.by_name[layer].channel_axis if magnitude.ndim else None)

    def rounded(self, layer: str) -> Array:
        """The weight that the layer has in INT8, as its codes' values."""
        return affine.fake_quantize(self.weight(layer), self.weight_qparams(layer), affine.S8)

    def bias(self, layer: str) -> Array | None:
        name = self.graph.by_name[layer].bias
        return None if name is None else self._value(layer, 2, name)

    def _value(self, layer: str, index: int, initializer: str | None) -> Array:
        found = self.values.get((layer, index))
        return self.graph.weight(initializer) if found is None else found


@dataclass(frozen=True)
class Material:
    """What a step may look at: the calibration batches, a compiler of the runtime, and where its pairs stand.

    What a compiled network returns may be the runtime's own memory, which its next call overwrites.

    seed: of whatever is drawn; progress: told what is going on, a line at a time.
    """

    batches: Sequence[Inputs]
    compile_run: CompileRun
    placement: Placement
    seed: int = 0
    progress: Callable[[str], None] | None = None

    def observe(self, graph: Graph) -> Statistics:
        """Statistics of every tensor that some configuration may quantize."""
        return collect(graph, candidates(graph, self.placement), self.batches, self.compile_run)

    def told(self, items: Sequence[str], doing: str) -> Iterator[str]:
        """`items`, one after the other, with a word about each."""
        for number, item in enumerate(items, 1):
            if self.progress is not None:
                self.progress(f"{doing} {number}/{len(items)}: {item}")
            yield item


class Step(Protocol):
    """One step of a recipe: deterministic given the seed, and with next to no effect when it is run again."""

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """`prepared` after this step."""
        ...
