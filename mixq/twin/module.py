"""The graph as a trainable torch module."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from mixq.errors import InputError
from mixq.twin.pairs import PAIR, joined_pairs
from mixq.twin.step import Step, freeing, named, steps_of, unsupported_ops
from mixq.twin.tensors import from_ir

_TRAINABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Twin(torch.nn.Module):
    """An ONNX graph that runs in torch, with gradients, node by node through the table `mixq.twin.ops.OPS`.

    The initializers named in `trainable` become float32 parameters, in that order; all others are constants, and what
    depends on constants alone is computed once, here. Values are copied: training does not change the model.
    The graph's float16 and bfloat16 values are float32 here; only Cast rounds them.
    train() and eval() make no difference: normalization and dropout are those of inference.

    tied: initializers, by name, that are read as another one, so that both are one parameter.
    Raises InputError for an op that is not in the table and for a name in `trainable` that is no float initializer.
    """

    def __init__(self, model: ir.Model, trainable: Collection[str] = (), tied: Mapping[str, str] | None = None) -> None:
        super().__init__()
        _check_ops(model)
        _check_trainable(model, trainable)
        graph = model.graph
        self._inputs = frozenset(named(value) for value in graph.inputs) - graph.initializers.keys()
        self._outputs = tuple(named(value) for value in graph.outputs)
        initializers = {name: from_ir(_content(value)) for name, value in graph.initializers.items()}
        constants = {name: tensor for name, tensor in initializers.items() if name not in set(trainable)}
        steps = _fold(joined_pairs(_tied(steps_of(model), tied or {}), self._outputs), constants)
        self._parameter_of = self._store_parameters({name: initializers[name] for name in trainable})
        self._buffer_of = self._store_constants(constants, steps)
        fixed = {*self._outputs, *self._inputs, *self._parameter_of, *self._buffer_of}
        self._steps = freeing(steps, kept=fixed)

    @property
    def pairs(self) -> frozenset[str]:
        """Names of the nodes DequantizeLinear that undo a QuantizeLinear: what `forward` can skip."""
        return frozenset(step.name for step in self._steps if step.op_type == PAIR)

    def forward(
        self, inputs: Mapping[str, torch.Tensor], skipped: Collection[str] = frozenset()
    ) -> dict[str, torch.Tensor]:
        """The graph's outputs by name for its inputs by name, in the graph's shapes and types (16-bit floats: float32).

        skipped: names of `pairs` that let their input pass as it is. Raises InputError if an input is missing or
        unknown.
        """
        if inputs.keys() != self._inputs:
            raise InputError(f"inputs {sorted(inputs)} do not fit the graph: give exactly {sorted(self._inputs)}")
        values = {name: _prepared(tensor) for name, tensor in inputs.items()}
        for stored in (self._parameter_of, self._buffer_of):
            values.update((name, getattr(self, attribute)) for name, attribute in stored.items())
        for step in self._steps:
            if step.name in skipped and step.op_type == PAIR:
                step.skip(values)
            else:
                step.run(values)
        return {name: values[name] for name in self._outputs}

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters by the names of their initializers."""
        return {name: self.get_parameter(attribute) for name, attribute in self._parameter_of.items()}

    def parameter_values(self) -> dict[str, npt.NDArray[np.float32]]:
        """Copies of the parameters' values, by the names of their initializers."""
        return {
            name: parameter.detach().cpu().numpy().copy() for name, parameter in self.trainable_parameters().items()
        }

    def _store_parameters(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """Registers the tensors; name → attribute. Numbered, because torch allows no dot in a parameter's name."""
        attributes = {name: f"parameter_{index}" for index, name in enumerate(tensors)}
        for name, attribute in attributes.items():
            self.register_parameter(attribute, torch.nn.Parameter(tensors[name]))
        return attributes

    def _store_constants(self, constants: Mapping[str, torch.Tensor], steps: list[Step]) -> dict[str, str]:
        """Registers the constants that are used; name → attribute. The model has them, so state_dict does not."""
        used = {name for step in steps for name in step.inputs} | set(self._outputs)
        attributes = {name: f"constant_{index}" for index, name in enumerate(sorted(used & constants.keys()))}
        for name, attribute in attributes.items():
            self.register_buffer(attribute, constants[name], persistent=False)
        return attributes


def _check_ops(model: ir.Model) -> None:
    missing = unsupported_ops(model)
    if missing:
        listed = ", ".join(f"{op_type} (node {name!r})" for name, op_type in missing)
        raise InputError(
            f"cannot train this graph, no torch function is known for: {listed}; "
            "convert the model to opset 13 or later, inline its functions, export it without these ops, "
            "or add them to the table in mixq/twin/ops/__init__.py"
        )


def _check_trainable(model: ir.Model, trainable: Collection[str]) -> None:
    known = {name for name, value in model.graph.initializers.items() if value.dtype in _TRAINABLE}
    unknown = sorted(set(trainable) - known)
    if unknown:
        raise InputError(f"trainable: {unknown} are no float initializers of the graph; known: {sorted(known)}")


def _tied(steps: list[Step], tied: Mapping[str, str]) -> list[Step]:
    return [replace(step, inputs=tuple(tied.get(name, name) for name in step.inputs)) for step in steps]


def _content(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise InputError(f"initializer {value.name!r} has no data; load the model together with its external data")
    return value.const_value


def _fold(steps: list[Step], constants: dict[str, torch.Tensor]) -> list[Step]:
    """Runs the steps that need nothing but `constants`, adding to them, and returns the others."""
    remaining = []
    with torch.no_grad():
        for step in steps:
            if all(name in constants for name in step.inputs if name):
                step.run(constants)
            else:
                remaining.append(step)
    return remaining


def _prepared(tensor: torch.Tensor) -> torch.Tensor:
    """16-bit floats in float32; images with their channels last, which convolutions on a CPU are twice as fast on."""
    wide = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
    return wide.contiguous(memory_format=torch.channels_last) if wide.ndim == 4 else wide
