"""For each quantized tensor, the observer whose range leaves the least error at the outputs of the layers it feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mixq import affine
from mixq.calibration import OBSERVERS, get_observer
from mixq.graph.elementwise import only_readers
from mixq.graph.plan import make_plan
from mixq.ptq.moments import in_turn, matrices_of
from mixq.ptq.networks import float_inputs
from mixq.ptq.state import Material, Prepared, Range
from mixq.task import Array

BEST = "best"
FALLBACK = "mse"  # of tensors that no layer reads
SAMPLES = 2**13
AT_ONCE = 8

Group = tuple[str, ...]


def best_ranges(prepared: Prepared, material: Material) -> dict[str, Range]:
    """A range for every observed tensor. Tensors that share qparams where all layers are INT8 share the observer."""
    known = {name: observed_ranges(prepared, name) for name in OBSERVERS}
    readers = _readers(prepared, material)
    errors = _output_errors(prepared, material, readers, known)
    chosen = dict(known[FALLBACK])
    for group, found in errors.items():
        best = min(found, key=lambda name: found[name])
        chosen |= {tensor: known[best][tensor] for tensor in group}
    return chosen


def observed_ranges(prepared: Prepared, observer: str) -> dict[str, Range]:
    """The range that one observer gives every observed tensor."""
    functions = only_readers(prepared.graph.model)
    tensors = prepared.statistics.tensors
    return {name: get_observer(observer).range(found, functions.get(name)) for name, found in tensors.items()}


def _readers(prepared: Prepared, material: Material) -> dict[str, list[Group]]:
    """By layer, the groups of tensors that its input may be quantized with: as in a network of INT8, and alone."""
    graph = prepared.graph
    plan = make_plan(graph, graph.computing_names, material.placement)
    group_of = {tensor: group for group in plan.groups for tensor in group}
    found = {}
    for layer in graph.matrices:
        together = group_of[plan.inputs[layer.name][0]]
        alone = () if layer.input in together else ((layer.input,),)
        found[layer.name] = [together, *alone]
    return found


def _output_errors(
    prepared: Prepared,
    material: Material,
    readers: Mapping[str, Sequence[Group]],
    known: Mapping[str, Mapping[str, Range]],
) -> dict[Group, dict[str, float]]:
    """By group and observer: the relative squared error at the outputs of the layers that read it, summed."""
    found: dict[Group, dict[str, float]] = {}
    most = max(1, SAMPLES // len(material.batches))
    for layers in in_turn(prepared.graph.matrices, material, AT_ONCE):
        matrices = matrices_of(prepared.graph, layers)
        run = float_inputs(prepared.graph, material, layers)
        noise: dict[tuple[str, Group, str], float] = {}
        signal: dict[str, float] = {}
        for number, batch in enumerate(material.batches):
            values = run(batch)
            for layer in layers:
                rng = np.random.default_rng([material.seed, number])
                x = matrices[layer.name].columns(values[layer.name], most, rng)
                rows = matrices[layer.name].rows(prepared.weight(layer.name))
                signal[layer.name] = signal.get(layer.name, 0.0) + _energy(rows, x)
                for group in readers[layer.name]:
                    for name, ranges in known.items():
                        key = layer.name, group, name
                        noise[key] = noise.get(key, 0.0) + _energy(rows, _error(x, [ranges[t] for t in group]))
        for (layer_name, group, name), value in noise.items():
            errors = found.setdefault(group, dict.fromkeys(known, 0.0))
            errors[name] += value / (signal[layer_name] or 1.0)
    return found


def _error(x: Array, ranges: Sequence[Range]) -> Array:
    qparams = affine.asymmetric(min(low for low, _ in ranges), max(high for _, high in ranges))
    return affine.fake_quantize(x, qparams, affine.U8) - x


def _energy(rows: Array, columns: Array) -> float:
    """Of (groups, rows, columns) times (samples, groups, columns), the sum of squares."""
    return float(np.square(np.matmul(rows, columns.transpose(1, 2, 0))).sum(dtype=np.float64))
