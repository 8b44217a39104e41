"""Calibration inputs → Statistics, on the runtime, in a stream: memory does not grow with the number of batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mixq.calibration.histogram import TensorStatistics
from mixq.errors import InputError
from mixq.graph.model import CompileRun, Graph, input_names, serialize, with_outputs
from mixq.task import Inputs


@dataclass(frozen=True)
class Statistics:
    """What calibration saw of each tensor, by name."""

    tensors: Mapping[str, TensorStatistics]


def collect(graph: Graph, tensors: Sequence[str], batches: Iterable[Inputs], compile_run: CompileRun) -> Statistics:
    """Statistics of `tensors` (inputs included) over `batches`. Raises InputError for an empty set or NaN."""
    inputs = set(input_names(graph.model))
    run = compile_run(serialize(with_outputs(graph.model, [name for name in tensors if name not in inputs])))
    found = {name: TensorStatistics() for name in tensors}
    seen = 0
    for batch in batches:
        values = {**batch, **run(batch)}
        seen += 1
        for name, statistics in found.items():
            _update(statistics, name, values)
    if not seen:
        raise InputError("the calibration set is empty; calibration() must yield at least one batch")
    return Statistics(found)


def _update(statistics: TensorStatistics, name: str, values: Inputs) -> None:
    try:
        statistics.update(values[name])
    except InputError as error:
        raise InputError(f"tensor {name!r}: {error}") from None
