"""A copy of a tensor in which some elements or slices are replaced by, or reduced with, others."""

from __future__ import annotations

from math import prod

import torch

from mixq.errors import InputError
from mixq.twin.ops.index import counted_from_start
from mixq.twin.ops.signature import Attributes

_REDUCTION = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    attributes: Attributes, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    """x with each update at its own position, except along `axis`, where it goes to its index."""
    axis = attributes.get("axis", 0)
    return _scattered(attributes, x, axis, counted_from_start(indices, x.shape[axis]), updates)


def scatter_nd(attributes: Attributes, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """x with the slice at each row of the last axis of `indices` replaced by, or reduced with, one of `updates`."""
    depth = indices.shape[-1]
    places, size = x.shape[:depth], prod(x.shape[depth:])
    numbers = torch.arange(prod(places), device=x.device).reshape(places)
    rows = numbers[indices.unbind(-1)].reshape(-1, 1).expand(-1, size)
    table = x.reshape(prod(places), size)
    return _scattered(attributes, table, 0, rows, updates.reshape(rows.shape)).reshape(x.shape)


def _scattered(
    attributes: Attributes, x: torch.Tensor, axis: int, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    reduction = attributes.get("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, indices, updates)
    if reduction not in _REDUCTION:
        raise InputError(f"reduction={reduction!r} is not one of none, {', '.join(_REDUCTION)}")
    return x.scatter_reduce(axis, indices, updates, _REDUCTION[reduction])
