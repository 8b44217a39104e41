"""Which tensors inside a network training brings close to FP32's, beside the outputs.

Outputs alone say little of a few images to all the weights of a deep network, which then learn these images by heart;
what stands between its blocks says more, and to each block what it is to give (as BRECQ, Li et al. 2021, section 3.2,
reconstructs block by block).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mixq.graph.cut import Cut, joints
from mixq.graph.layers import row_shapes
from mixq.graph.model import Graph, serialize, with_outputs
from mixq.qat.loss import Hints, Lessons

MOST = 5  # of all that there are: each costs time, and what it saves buys more in steps


def find_hints(graph: Graph, trained: Collection[str], lessons: Lessons, weight: float) -> Hints | None:
    """Those behind a trained layer, of the FP32 network `graph`; None where there are none or none are wanted."""
    if not weight or not lessons.distills:
        return None
    first = min(graph.positions[name] for name in trained)
    found = [cut for cut in joints(graph, row_shapes(graph.model, lessons.batches[0])) if cut.position > first]
    tensors = tuple(name for cut in _spread(found) for name in cut.tensors)
    return Hints(tensors, weight, serialize(with_outputs(graph.model, tensors))) if tensors else None


def _spread(cuts: Sequence[Cut]) -> list[Cut]:
    """At most MOST of them, from the first to the last at even distances."""
    if len(cuts) <= MOST:
        return list(cuts)
    return [cuts[round(index * (len(cuts) - 1) / (MOST - 1))] for index in range(MOST)]
