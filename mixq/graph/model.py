"""Graph and Layer: the captured network, never changed after capture; and how a model becomes bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from mixq.errors import InputError
from mixq.graph import large
from mixq.task import Array, Inputs, Outputs

Run = Callable[[Inputs], Outputs]
"""A compiled model: inputs by name → outputs by name."""

CompileRun = Callable[[bytes], Run]
"""Serialized ONNX → Run; a runtime's compile, handed to what must run graphs but knows no runtime."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One node with a weight, or the product of two activations (attention). Shapes are those of one row.

    weight: None where there is none; weight_shape then is that of the second operand, whose name is `other`. input: the
    tensor that is multiplied; of a Gather, which looks rows of its weight up, their indices. macs: multiply-accumulates
    a row; bytes: of the parameters in FP32; groups, strides: of a convolution. bias: of a MatMul,
    what another node adds.
    """

    name: str
    op: str
    weight: str | None
    bias: str | None
    channel_axis: int
    input: str
    output: str
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    other: str | None = None
    groups: int = 1
    strides: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return 4 * self.parameters

    @property
    def looks_up(self) -> bool:
        """Whether it is an embedding: a table of weights, of which rows are read and nothing is computed."""
        return self.op == "Gather"

    @property
    def multiplies(self) -> bool:
        """Whether its weight is a matrix that multiplies its input: what recipes and training work on."""
        return self.weight is not None and not self.looks_up

    @property
    def adds_bias(self) -> bool:
        """Whether it is the layer's own node that adds the bias."""
        return self.bias is not None and self.op != "MatMul"

    @property
    def weight_index(self) -> int:
        """The number of the node's input that is the weight."""
        return 0 if self.looks_up else 1

    @property
    def operands(self) -> dict[int, str]:
        """The activations that the layer computes with, by the number of the node's input."""
        found = {} if self.looks_up else {0: self.input}
        return found if self.other is None else {**found, 1: self.other}


@dataclass(frozen=True, eq=False)
class Graph:
    """A normalized FP32 ONNX model (opset 21; layer nodes carry their layer's name) and its layers in order."""

    model: ir.Model
    layers: tuple[Layer, ...]

    @cached_property
    def by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        """The nodes by name, in order."""
        return {str(node.name): node for node in self.model.graph}

    @cached_property
    def positions(self) -> dict[str, int]:
        """The nodes' numbers by name."""
        return {name: number for number, name in enumerate(self.nodes)}

    @property
    def layer_names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    @property
    def computing_names(self) -> list[str]:
        """The layers that compute with activations: all but embeddings."""
        return [layer.name for layer in self.layers if layer.operands]

    @property
    def matrices(self) -> tuple[Layer, ...]:
        """The layers whose weight multiplies their input."""
        return tuple(layer for layer in self.layers if layer.multiplies)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (16 digits) over topology and weights."""
        return hashlib.sha256(serialize(self.model)).hexdigest()[:16]

    def weight(self, name: str | None) -> Array:
        """The value of the initializer `name`. Raises KeyError where there is none, as for a layer without a weight."""
        tensor = None if name is None else self.model.graph.initializers[name].const_value
        if tensor is None:
            raise KeyError(name)
        return tensor.numpy()

    def layer(self, name: str) -> Layer:
        """Raises InputError with the known layers where there is none of that name."""
        if name not in self.by_name:
            raise InputError(f"there is no layer {name!r}; known: {', '.join(self.layer_names)}")
        return self.by_name[name]


def serialize(model: ir.Model) -> bytes:
    """The model as one ONNX protobuf, or as `large.pack` has it where protobuf bears no message of that size."""
    if large.weight_bytes(model) > large.ONNX_LIMIT:
        return large.pack(model)
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def deserialize(data: bytes) -> ir.Model:
    """The inverse of `serialize`."""
    return large.unpack(data)


def with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy whose graph also gives the tensors `names` as outputs."""
    copy = model.clone()
    values = values_by_name(copy)
    for name in names:
        if values[name] not in copy.graph.outputs:
            copy.graph.outputs.append(values[name])
    return copy


def input_names(model: ir.Model) -> tuple[str, ...]:
    return tuple(str(value.name) for value in model.graph.inputs)


def values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Every named tensor: inputs, initializers and node outputs."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    return {value.name: value for value in values if value.name}
