"""Front: FP32 values at a cut of the network, so that a change behind it is measured without running what is before.

The cut moves on as the layers that are looked at do; the values of one cut are held at a time. A second cut, behind the
change, ends what has to be compiled for each layer: the FP32 rest of the network is compiled once for many layers, or
the time for n layers would grow with n².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mixq import machine
from mixq.batches import concatenated, run_batch
from mixq.config import MixedPrecisionConfig, Precision, RecipeStep
from mixq.dataset import Split
from mixq.evaluator import Evaluator
from mixq.graph import serialize
from mixq.graph.cut import Cut, find_cuts, tail
from mixq.graph.layers import bias_place, row_shapes
from mixq.graph.lower import lower
from mixq.graph.model import Graph, Layer, input_names, values_by_name
from mixq.graph.plan import Plan, make_plan
from mixq.graph.regions import float_types
from mixq.ptq import parameters
from mixq.runtimes import Executable
from mixq.task import Inputs, Outputs

MOST_BYTES = 512 * 2**20
WORTH = 0.05  # of the network's work: what a new cut must save


class Front:
    """Runs candidates that differ from FP32 in one layer, layer after layer in graph order.

    Only the part of the network between the cuts is ever lowered, serialized and compiled for a layer.

    recipe: of all of them. Where it moves scale between layers, values at a cut are not those of the captured network.
    """

    def __init__(self, evaluator: Evaluator, split: Split, recipe: Sequence[RecipeStep] = ()) -> None:
        self._evaluator = evaluator
        self._batches: list[Inputs] = list(split.batches)
        self._cut: Cut | None = None
        self._prepared = evaluator.quantizer.prepared(tuple(recipe))
        self._graph = graph = self._prepared.graph
        shapes = row_shapes(graph.model, evaluator.data.example)
        self._cuts = [cut for cut in find_cuts(graph, shapes) if 4 * cut.elements * split.rows <= MOST_BYTES]
        self._values = values_by_name(graph.model)
        self._position = graph.positions
        self._exits = _spread(self._cuts, [self._position[layer.name] for layer in graph.layers])
        self._part: tuple[Cut | None, Cut | None, Graph] | None = None
        self._rest: tuple[Cut, Part] | None = None

    @property
    def position(self) -> int:
        """The number of the first node that is still run."""
        return 0 if self._cut is None else self._cut.position

    def advance_to(self, layer: Layer) -> None:
        """Move the cut as near to `layer` as it may stand and as is worth it."""
        graph = self._graph
        first = self._first_change(layer)
        able = [cut for cut in self._cuts if cut.position <= first]
        if able and self._work(able[-1]) - self._work(self._cut) >= WORTH * sum(one.macs for one in graph.layers):
            self._move(able[-1])

    def outputs(self, config: MixedPrecisionConfig) -> Outputs:
        """Of an untrained configuration, all rows; it must be FP32 before the cut and, but for a layer, behind it."""
        runtime = self._evaluator.runtime
        plan = make_plan(self._graph, config.static_layers, runtime.placement)
        types = float_types(self._graph.model, config, plan.readers)
        last = self._last_change(config, plan, types)
        leave = next((cut for cut in self._exits if cut.position > last), None)
        chosen = parameters(self._prepared, plan, config.layers_with(Precision.INT8))
        model = lower(self._until(leave), config, plan, chosen, typed=runtime.typed(config), types=types)
        changed = self._compiled(model, runtime.options(config))
        if leave is None:
            return concatenated([changed(batch) for batch in self._batches])
        if self._rest is None or self._rest[0] != leave:
            self._rest = leave, self._compiled(tail(self._graph.model, leave.start), self._float)
        rest = self._rest[1]
        return concatenated([rest({**batch, **changed(batch)}) for batch in self._batches])

    def _until(self, leave: Cut | None) -> Graph:
        """The part of the network from the cut to `leave`, to its end where that is None; the last one is kept."""
        if self._part is None or self._part[:2] != (self._cut, leave):
            outputs = () if leave is None else self._computed(leave)
            self._part = self._cut, leave, Graph(tail(self._graph.model, self._start, outputs), self._graph.layers)
        return self._part[2]

    @property
    def _start(self) -> tuple[str, ...]:
        """The tensors at the cut: inputs of what is run."""
        return self._cut.start if self._cut else input_names(self._graph.model)

    def _computed(self, cut: Cut) -> list[str]:
        """What has to be computed for a cut: some of it may pass the one before, too."""
        return [name for name in cut.tensors if name not in self._start]

    def _first_change(self, layer: Layer) -> int:
        """The number of the first node behind which the lowered graph may differ: where pairs may stand, at least."""
        plan = make_plan(self._graph, [layer.name], self._evaluator.runtime.placement)
        producers = [self._values[name].producer() for name in plan.tensors]
        places = [-1 if node is None else self._position[str(node.name)] for node in producers]
        return min([self._position[layer.name], *(place + 1 for place in places)])

    def _last_change(self, config: MixedPrecisionConfig, plan: Plan, types: Mapping[str, Precision]) -> int:
        """The number of the last node that reads something else than in FP32, or gives another type."""
        changed = [name for name, scheme in config.schemes.items() if scheme.precision is not Precision.FP32]
        matrices = [self._graph.nodes[name] for name in changed if self._graph.by_name[name].multiplies]
        biased = [str(place[0].name) for place in map(bias_place, matrices) if place is not None]
        retyped = [name for name, precision in types.items() if precision is not Precision.FP32]
        return max(self._position[name] for name in [*changed, *plan.readers, *biased, *retyped])

    def _work(self, cut: Cut | None) -> int:
        """Multiply-accumulates before a cut."""
        reached = 0 if cut is None else cut.position
        return sum(layer.macs for layer in self._graph.layers if self._position[layer.name] < reached)

    def _move(self, cut: Cut) -> None:
        part = self._compiled(tail(self._graph.model, self._start, self._computed(cut)), self._float)
        found = [{**batch, **part(batch)} for batch in self._batches]
        self._batches = [{name: values[name] for name in cut.start} for values in found]
        self._cut = cut

    @property
    def _float(self) -> Mapping[str, str]:
        return self._evaluator.reference.options

    def _compiled(self, model: ir.Model, options: Mapping[str, str]) -> Part:
        executable = self._evaluator.runtime.compile(serialize(model), machine.cores(), options)
        return Part(executable, input_names(model), self._evaluator.data.batch_rows)


@dataclass(frozen=True)
class Part:
    """A part of a network, compiled: values, of which it takes those named `inputs`, to its outputs."""

    executable: Executable
    inputs: tuple[str, ...]
    rows: int

    def __call__(self, values: Inputs) -> Outputs:
        return run_batch(self.executable, {name: values[name] for name in self.inputs}, self.rows)


def _spread(cuts: Sequence[Cut], layers: Sequence[int]) -> list[Cut]:
    """As many of the cuts as the root of the number of layers, with about as many layers between each two."""
    step = max(1, round(len(layers) ** 0.5))
    wanted = layers[step::step]
    found = (next((cut for cut in cuts if cut.position > place), None) for place in wanted)
    return [cut for cut in dict.fromkeys(found) if cut is not None]
