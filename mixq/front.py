"""Front: FP32 values at a cut of the network, so that a change behind it is measured without running what is before.

The cut moves on as the layers that are looked at do; the values of one cut are held at a time. A second cut, behind the
change, ends what has to be compiled for each layer: the FP32 rest of the network is compiled once for many layers, or
the time for n layers would grow with n².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from mixq import machine
from mixq.batches import concatenated, run_batch
from mixq.config import MixedPrecisionConfig, Precision, RecipeStep
from mixq.dataset import Split
from mixq.evaluator import Evaluator
from mixq.graph import serialize
from mixq.graph.cut import Cut, find_cuts, tail
from mixq.graph.edit import nodes_by_name
from mixq.graph.layers import bias_place, row_shapes
from mixq.graph.model import Layer, values_by_name
from mixq.graph.plan import Plan, make_plan
from mixq.runtimes import Executable
from mixq.task import Inputs, Outputs

MOST_BYTES = 512 * 2**20
WORTH = 0.05  # of the network's work: what a new cut must save


class Front:
    """Runs candidates that differ from FP32 in one layer, layer after layer in graph order.

    recipe: of all of them. Where it moves scale between layers, values at a cut are not those of the captured network.
    """

    def __init__(self, evaluator: Evaluator, split: Split, recipe: Sequence[RecipeStep] = ()) -> None:
        self._evaluator, self._rows = evaluator, split.rows
        self._batches: list[Inputs] = list(split.batches)
        self._cut: Cut | None = None
        self._graph = graph = evaluator.quantizer.prepared(tuple(recipe)).graph
        shapes = row_shapes(graph.model, evaluator.data.example)
        self._cuts = [cut for cut in find_cuts(graph, shapes) if 4 * cut.elements * split.rows <= MOST_BYTES]
        self._position = {str(node.name): index for index, node in enumerate(graph.model.graph)}
        self._exits = _spread(self._cuts, [self._position[layer.name] for layer in graph.layers])
        self._rest: tuple[Cut, Executable] | None = None

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
        """Of an untrained configuration, for all rows; it must be FP32 before the cut, and but for a layer behind it.

        Only the part that is run is ever serialized: embeddings before the cut are most of some networks.
        """
        model, options = self._evaluator.untrained_model(config), self._evaluator.runtime.options(config)
        leave = self._exit(config, model)
        start = self._cut.tensors if self._cut is not None else [str(value.name) for value in model.graph.inputs]
        if leave is None:
            return concatenated(self._run(serialize(tail(model, start)), options))
        found = self._run(serialize(tail(model, start, leave.tensors)), options)
        if self._rest is None or self._rest[0] != leave:
            rest = serialize(tail(self._graph.model, leave.tensors))
            self._rest = leave, self._compiled(rest, self._evaluator.reference.options)
        return concatenated([run_batch(self._rest[1], batch, self._evaluator.data.batch_rows) for batch in found])

    def _exit(self, config: MixedPrecisionConfig, model: ir.Model) -> Cut | None:
        """The first cut of those agreed on behind which the configuration's graph is FP32's own."""
        changed = [name for name, scheme in config.schemes.items() if scheme.precision is not Precision.FP32]
        last, values = self._last_change(changed), values_by_name(model)
        for cut in self._exits:
            if cut.position > last and all(_is_float(values.get(name)) for name in cut.tensors):
                return cut
        return None

    def _first_change(self, layer: Layer) -> int:
        """The number of the first node behind which the lowered graph may differ: where pairs may stand, at least."""
        plan = self._plan([layer.name])
        values = values_by_name(self._graph.model)
        producers = [values[name].producer() for name in plan.tensors]
        places = [-1 if node is None else self._position[str(node.name)] for node in producers]
        return min([self._position[layer.name], *(place + 1 for place in places)])

    def _last_change(self, layers: Sequence[str]) -> int:
        """The number of the last node that reads something else than in FP32."""
        edges = self._plan(layers).reads.values()
        readers = [name for nodes in edges for name, _ in nodes]
        biased = [str(place[0].name) for place in map(bias_place, self._nodes(layers)) if place is not None]
        return max(self._position[name] for name in [*layers, *readers, *biased])

    def _nodes(self, layers: Sequence[str]) -> list[ir.Node]:
        nodes = nodes_by_name(self._graph.model.graph)
        return [nodes[name] for name in layers if self._graph.by_name[name].multiplies]

    def _plan(self, layers: Sequence[str]) -> Plan:
        return make_plan(self._graph, layers, self._evaluator.runtime.placement)

    def _work(self, cut: Cut | None) -> int:
        """Multiply-accumulates before a cut."""
        reached = 0 if cut is None else cut.position
        return sum(layer.macs for layer in self._graph.layers if self._position[layer.name] < reached)

    def _move(self, cut: Cut) -> None:
        model = self._graph.model
        start = self._cut.tensors if self._cut is not None else [str(value.name) for value in model.graph.inputs]
        part = serialize(tail(model, start, cut.tensors))
        self._batches = self._run(part, self._evaluator.reference.options)
        self._cut = cut

    def _run(self, model: bytes, options: Mapping[str, str]) -> list[Outputs]:
        """What the model gives for each batch."""
        executable = self._compiled(model, options)
        return [run_batch(executable, batch, self._evaluator.data.batch_rows) for batch in self._batches]

    def _compiled(self, model: bytes, options: Mapping[str, str]) -> Executable:
        return self._evaluator.runtime.compile(model, machine.cores(), options)


def _spread(cuts: Sequence[Cut], layers: Sequence[int]) -> list[Cut]:
    """As many of the cuts as the root of the number of layers, with about as many layers between each two."""
    step = max(1, round(len(layers) ** 0.5))
    wanted = layers[step::step]
    found = (next((cut for cut in cuts if cut.position > place), None) for place in wanted)
    return [cut for cut in dict.fromkeys(found) if cut is not None]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
