"""Shifts: constants taken off the channels of a tensor where it is written, for which its readers' biases make up.

As scale does, an offset moves between layers without a change of what the network computes (Outlier Suppression+, Wei
et al. 2023, section 4.1), as long as every value that a reader multiplies has it: zeros that a convolution pads with
have not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from mixq.graph.edit import content, is_own, nodes_by_name, set_content
from mixq.graph.layers import bias_place
from mixq.graph.model import Graph
from mixq.graph.scaling import NORMALIZATIONS, ScaleGroup, read_channels, read_weight
from mixq.task import Array

READING = ("Conv", "Gemm", "MatMul")
WRITING = ("Conv", "ConvTranspose", "Gemm", *NORMALIZATIONS)


@dataclass(frozen=True)
class ShiftPlace:
    """A tensor whose channels may be shifted; writer, readers: names of nodes."""

    tensor: str
    writer: str
    readers: tuple[str, ...]


def find_shift_places(graph: Graph, groups: Iterable[ScaleGroup]) -> list[ShiftPlace]:
    """Those of the tensors that are scale groups of their own."""
    found = []
    for group in groups:
        if len(group.tensors) == 1 and len(group.writers) == 1:
            place = ShiftPlace(group.tensors[0], group.writers[0], group.readers)
            readers = [graph.nodes[name] for name in place.readers]
            if _takes(graph.nodes[place.writer]) and all(_makes_up(node) for node in readers):
                found.append(place)
    return found


def shifted(graph: Graph, shifts: Sequence[tuple[ShiftPlace, Array]]) -> Graph:
    """A graph that computes the same, in which each tensor is less its shift (channels,)."""
    model = graph.model.clone()
    nodes = nodes_by_name(model.graph)
    for place, shift in shifts:
        _add(nodes[place.writer].inputs[2], -shift)
        for reader in (nodes[name] for name in place.readers):
            weight = read_weight(reader).astype(np.float64)
            _add(_bias(reader), (weight * read_channels(reader, shift)).sum((1, 2)))
    return replace(graph, model=model)


def _takes(writer: ir.Node) -> bool:
    """Whether the node adds a constant of its own to each channel."""
    bias = writer.inputs[2] if writer.op_type in WRITING and len(writer.inputs) > 2 else None
    return _own(bias) and _plain(writer)


def _makes_up(reader: ir.Node) -> bool:
    """Whether the layer has a bias of its own, and multiplies nothing but values of the tensor."""
    padded = any(reader.attributes.get_ints("pads", ()) or ())
    padded |= reader.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return reader.op_type in READING and not padded and _own(_bias(reader)) and _plain(reader)


def _plain(node: ir.Node) -> bool:
    """Not with a Gemm's own factors."""
    return all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta"))


def _bias(layer: ir.Node) -> ir.Value | None:
    place = bias_place(layer)
    return None if place is None else place[0].inputs[place[1]]


def _own(value: ir.Value | None) -> bool:
    return value is not None and is_own(value)


def _add(value: ir.Value | None, amount: Array) -> None:
    if value is None:
        raise ValueError("a shift needs a constant to be added to")
    set_content(value, content(value) + amount)
