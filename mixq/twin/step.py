"""One node of the graph, made ready to run: attributes bound, names resolved, and what may be freed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from mixq.errors import InputError
from mixq.twin.ops import OPS, Inputs, Outputs
from mixq.twin.tensors import from_ir


@dataclass(frozen=True, slots=True)
class Step:
    """Runs `function` on named values; "" stands for an optional input or output that is left out."""

    name: str
    op_type: str
    function: Callable[[Inputs], Outputs]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def run(self, values: dict[str, torch.Tensor]) -> None:
        """Adds the outputs to `values` and removes what no later step reads.

        Raises InputError, with the node's name, where the op does not support what the node asks for.
        """
        arguments = [values[name] if name else None for name in self.inputs]
        try:
            results = self.function(arguments)
        except InputError as error:
            raise InputError(f"node {self.name!r}: {error}") from error
        except Exception as error:
            error.add_note(f"in node {self.name!r} ({self.op_type}), inputs {self._described(values)}")
            raise
        if isinstance(results, torch.Tensor):
            results = (results,)
        if len(results) < len(self.outputs):
            raise InputError(
                f"node {self.name!r}: {self.op_type} gives {len(results)} outputs here, the graph uses "
                f"{len(self.outputs)}; remove what reads {', '.join(self.outputs[len(results) :])}"
            )
        values.update(zip(self.outputs, results, strict=False))
        self._free(values)

    def skip(self, values: dict[str, torch.Tensor]) -> None:
        """As `run`, but the output is the first input as it is."""
        values[self.outputs[0]] = values[self.inputs[0]]
        self._free(values)

    def _free(self, values: dict[str, torch.Tensor]) -> None:
        for name in self.last_uses:
            del values[name]

    def _described(self, values: dict[str, torch.Tensor]) -> str:
        return ", ".join(f"{name} {tuple(values[name].shape)} {values[name].dtype}" for name in self.inputs if name)


def label(node: ir.Node) -> str:
    """The node's name; a nameless node goes by its first output."""
    return node.name or named(node.outputs[0])


def named(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def unsupported_ops(model: ir.Model) -> list[tuple[str, str]]:
    """(node name, op type) of every node that a Twin cannot run, in graph order.

    An op of another domain is given as domain::op, one whose meaning was another in the graph's opset as op-opset.
    """
    types = ((label(node), _full_type(node, model.opset_imports.get("", 0))) for node in model.graph)
    return [(name, op_type) for name, op_type in types if op_type not in OPS]


def _full_type(node: ir.Node, opset: int) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{node.op_type}"
    # Until opset 13 these two normalized over all axes from `axis` on, not over `axis` alone.
    changed = opset < 13 and node.op_type in ("Softmax", "LogSoftmax")
    return f"{node.op_type}-{opset}" if changed else node.op_type


def steps_of(model: ir.Model) -> list[Step]:
    """The nodes in graph order, nothing freed yet. Raises InputError if a node stands before one that it reads."""
    known = {"", *map(named, model.graph.inputs), *model.graph.initializers}
    for node in model.graph:
        early = {named(value) for value in node.inputs} - known
        if early:
            raise InputError(f"node {label(node)!r} reads {sorted(early)} too early; sort the graph topologically")
        known.update(map(named, node.outputs))
    return [_step(node) for node in model.graph]


def _step(node: ir.Node) -> Step:
    attributes = attributes_of(node)
    return Step(
        label(node),
        node.op_type,
        partial(OPS[node.op_type], attributes),
        tuple(map(named, node.inputs)),
        tuple(map(named, node.outputs)),
        attributes=attributes,
    )


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The attributes as numbers, strings, tuples and torch tensors, with two facts that only the node knows.

    num_outputs is how many outputs are used (from opset 18 it is Split's own attribute); CastLike gets `to`, the type
    of its second input, if the graph states it.
    """
    attributes: dict[str, Any] = {"num_outputs": len(node.outputs)}
    if node.op_type == "CastLike" and (target := node.inputs[1]) is not None and target.dtype is not None:
        attributes["to"] = target.dtype
    for name, attribute in node.attributes.items():
        value = attribute.value
        attributes[name] = from_ir(value) if attribute.type == ir.AttributeType.TENSOR else value
    return attributes


def freeing(steps: Iterable[Step], kept: Collection[str]) -> list[Step]:
    """The same steps, each freeing the values that it is the last to use (or that nothing uses), except `kept`."""
    seen = set(kept) | {""}
    backward = []
    for step in reversed(list(steps)):
        last = dict.fromkeys(name for name in step.inputs + step.outputs if name not in seen)
        seen.update(last)
        backward.append(replace(step, last_uses=tuple(last)))
    return backward[::-1]
