"""Tensors that come from attributes, shapes or numbers rather than from other tensors."""

from __future__ import annotations

from math import prod

import torch

from mixq.errors import InputError
from mixq.twin.ops.index import counted_from_start
from mixq.twin.ops.signature import Attributes
from mixq.twin.tensors import storage


def constant(attributes: Attributes) -> torch.Tensor:
    """The tensor, number or list of numbers of the node. Raises InputError for strings and sparse tensors."""
    for name in ("value_float", "value_floats"):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=torch.float32)
    for name in ("value_int", "value_ints"):
        if name in attributes:
            return torch.tensor(attributes[name], dtype=torch.int64)
    value = attributes.get("value")
    if not isinstance(value, torch.Tensor):
        raise InputError(f"Constant: {', '.join(attributes)} is not supported; give a dense tensor of numbers")
    return value


def constant_of_shape(attributes: Attributes, shape: torch.Tensor) -> torch.Tensor:
    """A tensor of the given shape, filled with the one element of `value` (float32 zero, if not given)."""
    value = attributes.get("value", torch.zeros(1))
    return torch.full(shape.tolist(), value.item(), dtype=value.dtype, device=shape.device)


def range_(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def shape_of(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """The shape of x (int64), from axis `start` up to axis `end`."""
    part = slice(attributes.get("start", 0), attributes.get("end"))
    return torch.tensor(x.shape[part], dtype=torch.int64, device=x.device)


def size_of(x: torch.Tensor) -> torch.Tensor:
    """The number of elements of x (int64, 0-d)."""
    return torch.tensor(prod(x.shape), dtype=torch.int64, device=x.device)


def eye_like(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """A matrix of the shape of x: ones on the k-th diagonal, else zeros, in the type `dtype` or that of x."""
    rows, columns = (torch.arange(length, device=x.device) for length in x.shape)
    diagonal: int = attributes.get("k", 0)
    ones = rows.unsqueeze(1) + diagonal == columns
    return ones.to(storage(attributes["dtype"]) if "dtype" in attributes else x.dtype)


def one_hot(attributes: Attributes, indices: torch.Tensor, depth: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """values[1] where the index is the position along the new axis `axis` of length `depth`, else values[0]."""
    length = int(depth.item())
    wanted = counted_from_start(indices, length).unsqueeze(-1)
    hot = wanted == torch.arange(length, device=indices.device)
    off, on = values.unbind()
    return torch.where(hot, on, off).movedim(-1, attributes.get("axis", -1))
