"""A prepared network as arrays and an index of them, and back: what an ArrayStore keeps of a long recipe step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from mixq.array_store import Arrays
from mixq.calibration import Statistics, TensorStatistics
from mixq.graph.branches import with_branch_scales, without_idle_scales
from mixq.graph.model import Graph
from mixq.ptq.state import Prepared
from mixq.task import Array


def packed(prepared: Prepared, start: Graph) -> tuple[dict[str, Any], dict[str, Array]]:
    """The index and the arrays of `prepared`; of its graph, the weights that are not those of `start`.

    `start` may lack the scales that `equalize` puts on branches: they are among those weights where they are not ones.
    """
    arrays: dict[str, Array] = {}

    def put(array: Array) -> str:
        name = str(len(arrays))
        arrays[name] = array
        return name

    names, before = prepared.graph.model.graph.initializers, with_branch_scales(start)
    changed = [name for name in names if not np.array_equal(prepared.graph.weight(name), before.weight(name))]
    index = {
        "weights": {name: put(prepared.graph.weight(name)) for name in changed},
        "ranges": {name: [float(low), float(high)] for name, (low, high) in prepared.ranges.items()},
        "magnitudes": {layer: put(magnitude) for layer, magnitude in prepared.magnitudes.items()},
        "values": [[layer, place, put(value)] for (layer, place), value in prepared.values.items()],
        "statistics": {
            name: [found.low, found.high, found.limit, put(found.counts)]
            for name, found in prepared.statistics.tensors.items()
        },
    }
    return index, arrays


def unpacked(index: dict[str, Any], arrays: Arrays, start: Graph) -> Prepared:
    """The inverse of `packed`."""
    return Prepared(
        _with_weights(start, {name: arrays[key] for name, key in index["weights"].items()}),
        Statistics(
            {
                name: TensorStatistics(low, high, limit, arrays[key])
                for name, (low, high, limit, key) in index["statistics"].items()
            }
        ),
        {name: (low, high) for name, (low, high) in index["ranges"].items()},
        {layer: arrays[key] for layer, key in index["magnitudes"].items()},
        {(layer, place): arrays[key] for layer, place, key in index["values"]},
    )


def _with_weights(start: Graph, weights: dict[str, Array]) -> Graph:
    if not weights:
        return start
    changed = with_branch_scales(start)
    for name, value in weights.items():
        changed.model.graph.initializers[name].const_value = ir.tensor(value, name=name)
    return without_idle_scales(changed)
