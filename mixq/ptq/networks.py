"""The FP32 network and that with every layer in INT8, run on calibration data as far as the inputs of some layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from mixq.config import LayerScheme, MixedPrecisionConfig, Precision
from mixq.graph.cut import Cut, find_cuts, tail
from mixq.graph.edit import nodes_by_name
from mixq.graph.layers import row_shapes
from mixq.graph.lower import lower
from mixq.graph.model import Graph, Layer, Run, input_names, serialize, values_by_name
from mixq.graph.plan import make_plan
from mixq.ptq.parameters import parameters
from mixq.ptq.state import Material, Prepared
from mixq.task import Array, Inputs, Outputs

FP32, INT8 = LayerScheme(precision=Precision.FP32), LayerScheme(precision=Precision.INT8)
MOST_BYTES = 2**28  # of the values at a cut, over all batches


def float_inputs(graph: Graph, material: Material, layers: Sequence[Layer]) -> Run:
    """Inputs of the network → by layer name, the layer's input."""
    return _inputs_of(graph.model, material, layers, input_names(graph.model))


def int8_inputs(prepared: Prepared, material: Material, layers: Sequence[Layer]) -> Run:
    """The same where every layer runs in INT8."""
    model = int8_model(prepared, material)
    return _inputs_of(model, material, layers, input_names(model))


def int8_model(prepared: Prepared, material: Material) -> ir.Model:
    """The network with every layer that computes in INT8."""
    graph = prepared.graph
    int8 = graph.computing_names
    plan = make_plan(graph, int8, material.placement)
    schemes = {**dict.fromkeys(graph.layer_names, FP32), **dict.fromkeys(int8, INT8)}
    config = MixedPrecisionConfig(model=graph.fingerprint, schemes=schemes)
    return lower(graph, config, plan, parameters(prepared, plan, int8))


class Walk:
    """Goes through both networks, layer after layer in the graph's order; what lies behind is not run again.

    The weights of the layers behind must not change any more.
    """

    def __init__(self, graph: Graph, material: Material) -> None:
        self._graph, self._material = graph, material
        self._at, self._start = 0, input_names(graph.model)
        self._exact: list[Inputs] = list(material.batches)
        self._int8: list[Inputs] = list(material.batches)
        rows = sum(len(next(iter(batch.values()))) for batch in material.batches)
        cuts = find_cuts(graph, row_shapes(graph.model, material.batches[0]))
        self._cuts = [cut for cut in cuts if 4 * cut.elements * rows <= MOST_BYTES]

    def inputs(self, prepared: Prepared, layer: Layer) -> Iterator[tuple[Array, Array]]:
        """The layer's input in FP32 and in INT8, batch by batch."""
        model = int8_model(prepared, self._material)
        self._advance(model, layer)
        exact = _inputs_of(self._graph.model, self._material, [layer], self._start)
        quantized = _inputs_of(model, self._material, [layer], self._start)
        for x, q in zip(self._exact, self._int8, strict=True):
            yield exact(x)[layer.name], quantized(q)[layer.name]

    def _advance(self, model: ir.Model, layer: Layer) -> None:
        """To the last cut before `layer` that both networks have."""
        values = values_by_name(model)
        able = [
            cut
            for cut in self._cuts
            if self._at < cut.position <= self._graph.positions[layer.name]
            and all(name in values and values[name].dtype == ir.DataType.FLOAT for name in cut.tensors)
        ]
        if able:
            self._exact = self._moved(self._graph.model, self._exact, able[-1])
            self._int8 = self._moved(model, self._int8, able[-1])
            self._at, self._start = able[-1].position, able[-1].start

    def _moved(self, model: ir.Model, batches: Sequence[Inputs], cut: Cut) -> list[Inputs]:
        run = _outputs_of(model, self._material, cut.start, self._start)
        return [{name: value.copy() for name, value in run(batch).items()} for batch in batches]


def _inputs_of(model: ir.Model, material: Material, layers: Sequence[Layer], start: Sequence[str]) -> Run:
    """Values of the tensors `start` → by layer name, the layer's input."""
    nodes = nodes_by_name(model.graph)
    names = {layer.name: str(value.name) for layer in layers if (value := nodes[layer.name].inputs[0])}
    run = _outputs_of(model, material, list(names.values()), start)

    def inputs_of(batch: Inputs) -> Outputs:
        values = run(batch)
        return {layer: values[name] for layer, name in names.items()}

    return inputs_of


def _outputs_of(model: ir.Model, material: Material, tensors: Sequence[str], start: Sequence[str]) -> Run:
    """Values of the tensors `start` → those of `tensors`, some of which may be the same ones."""
    wanted = [name for name in dict.fromkeys(tensors) if name not in start]
    part = tail(model, start, wanted)
    run, given = material.compile_run(serialize(part)) if wanted else None, input_names(part)

    def outputs_of(batch: Inputs) -> Outputs:
        found = run({name: batch[name] for name in given}) if run is not None else {}
        return {name: found[name] if name in found else batch[name] for name in tensors}

    return outputs_of
