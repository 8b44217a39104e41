"""Learned: which values of a lowered graph training moves, and how they become parts of a prepared network again."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixq.affine import NEAREST, S8, U8
from mixq.graph.model import Graph, Layer
from mixq.graph.plan import Plan
from mixq.graph.quantize import Parameters, own_name, scale_name, weight_name
from mixq.ptq import Prepared
from mixq.ptq.neighbours import pair_sums, with_room
from mixq.task import Array

SCALE_RATE = 3.0
MIDDLING = 32  # code of an activation


@dataclass(frozen=True)
class Learned:
    """By name of the lowered graph's initializer, what it is.

    values: (layer, input index) of weights and biases; weight_scales: the layer; data_scales: the tensors of a group,
    which share one scale, that of the first; the names of the others are in `tied`. neighbours: the layers of the
    weights, where the sums of pairs of them have to fit 16 bits.
    """

    values: Mapping[str, tuple[str, int]]
    weight_scales: Mapping[str, str]
    data_scales: Mapping[str, tuple[str, ...]]
    tied: Mapping[str, str]
    neighbours: Mapping[str, Layer]

    @property
    def names(self) -> list[str]:
        return [*self.values, *self.weight_scales, *self.data_scales]

    def units(self, graph: Graph, plan: Plan, parameters: Parameters) -> dict[str, float]:
        """By name, how far one step of training with the learning rate 1 is to move its numbers.

        A weight moves by its quantization step, so that one learning rate suits networks that lose little, whose steps
        are small, and such that lose much. What else a layer has moves by as much of its own size; quantization scales,
        of which there are few, by more.
        """
        grains = {
            layer: _size(parameters.weights[layer].scale) / _size(_start(graph, parameters, layer, 1))
            for layer in dict.fromkeys(layer for layer, _ in self.values.values())
        }
        middle = math.exp(sum(map(math.log, grains.values())) / len(grains))
        found = {}
        for name, (layer, index) in self.values.items():
            own = _size(_start(graph, parameters, layer, 1))
            found[name] = grains[layer] * (own if index == 1 else _output_size(graph, plan, parameters, layer))
        for name, layer in self.weight_scales.items():
            found[name] = SCALE_RATE * grains[layer] * _size(parameters.weights[layer].scale)
        for name, group in self.data_scales.items():
            found[name] = SCALE_RATE * middle * _size(parameters.activations[group[0]].scale)
        return found

    def least_scales(self, values: Mapping[str, Any], xp: Any) -> dict[str, Any]:
        """By name, the least that the scale of a weight may be with the numbers `values`, arrays of `xp`."""
        found = {}
        for name, layer in self.weight_scales.items():
            if layer in self.neighbours:
                sums = pair_sums(values[own_name(layer, 1)], self.neighbours[layer], xp) / NEAREST
                found[name] = sums if values[name].ndim else sums.max()
        return found

    def moved(self, prepared: Prepared, parameters: Parameters, found: Mapping[str, Array]) -> Prepared:
        """`prepared` with what was learned, `found`; zero points stay those of `parameters`."""
        ranges = {
            tensor: _range(float(found[name]), int(parameters.activations[tensor].zero_point))
            for name, group in self.data_scales.items()
            for tensor in group
        }
        magnitudes = {layer: found[name].astype(float) * S8[1] for name, layer in self.weight_scales.items()}
        values = {key: found[name] for name, key in self.values.items()}
        magnitudes = {**prepared.magnitudes, **magnitudes}
        for name, layer in self.neighbours.items():
            magnitudes[name] = with_room(magnitudes[name], values[name, 1], layer, NEAREST)
        return replace(
            prepared,
            ranges={**prepared.ranges, **ranges},
            magnitudes=magnitudes,
            values={**prepared.values, **values},
        )


def learned(graph: Graph, plan: Plan, layers: Collection[str], int8: Collection[str], *, scales: bool) -> Learned:
    """What training the layers `layers`, of the INT8 layers `int8`, moves: weights and biases, with `scales` these too.

    A tensor's scale is learned where every INT8 layer that reads it is trained; where none reads it, if all are.
    """
    values: dict[str, tuple[str, int]] = {}
    for name in layers:
        indices = (1,) if graph.by_name[name].bias is None else (1, 2)
        values |= {own_name(name, index): (name, index) for index in indices}
    neighbours = {name: graph.by_name[name] for name in layers} if plan.placement.sums_saturate else {}
    if not scales:
        return Learned(values, {}, {}, {}, neighbours)
    groups = _own_groups(plan, layers, int8)
    return Learned(
        values,
        {scale_name(weight_name(name)): name for name in layers},
        {scale_name(group[0]): group for group in groups},
        {scale_name(tensor): scale_name(group[0]) for group in groups for tensor in group[1:]},
        neighbours,
    )


def merged(
    untrained: Prepared, trained: Prepared, plan: Plan, layers: Collection[str], int8: Collection[str]
) -> Prepared:
    """`untrained`, with what `trained` has for `layers`, and for the tensors that of the INT8 layers only they read."""
    tensors = {tensor for group in _own_groups(plan, layers, int8) for tensor in group}
    return replace(
        untrained,
        ranges={name: (trained if name in tensors else untrained).ranges[name] for name in untrained.ranges},
        magnitudes={name: (trained if name in layers else untrained).magnitudes[name] for name in untrained.magnitudes},
        values={
            **{key: value for key, value in untrained.values.items() if key[0] not in layers},
            **{key: value for key, value in trained.values.items() if key[0] in layers},
        },
    )


def _output_size(graph: Graph, plan: Plan, parameters: Parameters, layer: str) -> float:
    """About what a layer's outputs are: its weights times a middling input, from the scale of its codes."""
    weight = _start(graph, parameters, layer, 1)
    inputs = weight.size / weight.shape[graph.by_name[layer].channel_axis]
    return math.sqrt(inputs) * _size(weight) * MIDDLING * float(parameters.activations[plan.inputs[layer][0]].scale)


def _start(graph: Graph, parameters: Parameters, layer: str, index: int) -> Array:
    """The weight (1) or bias (2) that training starts from."""
    found = parameters.values.get((layer, index))
    name = graph.by_name[layer].weight if index == 1 else graph.by_name[layer].bias
    return graph.weight(name) if found is None else found


def _size(values: Array) -> float:
    """Root mean square, and a little."""
    return math.sqrt(float(np.square(values, dtype=np.float64).mean())) + 1e-9


def _own_groups(plan: Plan, layers: Collection[str], int8: Collection[str]) -> list[tuple[str, ...]]:
    """The groups of tensors that of the INT8 layers only `layers` read; one that none reads counts as read by all."""
    return [group for group in plan.groups if (readers(group, plan, int8) or set(int8)) <= set(layers)]


def readers(group: Collection[str], plan: Plan, int8: Collection[str]) -> set[str]:
    """The INT8 layers that read a tensor of the group."""
    return {layer for layer in int8 if not set(group).isdisjoint(plan.inputs[layer])}


def _range(scale: float, zero_point: int) -> tuple[float, float]:
    """What the codes cover."""
    return (U8[0] - zero_point) * scale, (U8[1] - zero_point) * scale
