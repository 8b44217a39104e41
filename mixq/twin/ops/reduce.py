"""Reductions over axes, and the positions of extremes.

The axes come from the attribute (before opset 13 or 18) or from the second input. Without axes all are reduced,
or, with noop_with_empty_axes, none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mixq.twin.ops.signature import Attributes, Op, spread

# (x, axes, keepdims) → the reduced tensor
Reduction = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]


def reduction(function: Reduction) -> Op:
    """The op that reduces with `function`."""

    def op(attributes: Attributes, x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
        dims = _dims(attributes, axes, x.ndim)
        if not dims:  # to torch, an empty tuple means all axes
            return function(x.unsqueeze(0), (0,), False)
        return function(x, dims, bool(attributes.get("keepdims", 1)))

    return spread(op)


def _dims(attributes: Attributes, axes: torch.Tensor | None, rank: int) -> tuple[int, ...]:
    dims = tuple(attributes.get("axes", ()) if axes is None else axes.tolist())
    if dims or attributes.get("noop_with_empty_axes", 0):
        return dims
    return tuple(range(rank))


def mean(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.mean(x, dims, keepdim=keep)


def total(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.sum(x, dims, keepdim=keep, dtype=x.dtype)


def product(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    for dim in sorted((dim % x.ndim for dim in dims), reverse=True):
        x = torch.prod(x, dim, keepdim=keep, dtype=x.dtype)
    return x


def l1(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return total(x.abs(), dims, keep)


def l2(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, 2, dims, keepdim=keep)
    return norm


def sum_square(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return total(x * x, dims, keep)


def log_sum(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.log(total(x, dims, keep))


def log_sum_exp(x: torch.Tensor, dims: tuple[int, ...], keep: bool) -> torch.Tensor:
    return torch.logsumexp(x, dims, keepdim=keep)


def extreme(function: Callable[..., torch.Tensor]) -> Op:
    """The op that finds the position (int64) of an extreme along `axis` with torch.argmax or torch.argmin.

    Of equal values the first one counts, or with select_last_index the last.
    """

    def op(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
        axis, keep = attributes.get("axis", 0), bool(attributes.get("keepdims", 1))
        if attributes.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
        return function(x, axis, keepdim=keep)

    return spread(op)
