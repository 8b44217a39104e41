"""Padding, by a constant or by what stands at the border."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes
from mixq.twin.ops.window import Pads, flat, pairs


def pad(
    attributes: Attributes,
    x: torch.Tensor,
    pads: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    axes: torch.Tensor | None = None,
) -> torch.Tensor:
    """x with elements added (or, where a pad is negative, removed) before and after each of `axes` (all, if not given).

    mode is constant, reflect, edge or wrap. Raises InputError for another.
    """
    given = pairs(attributes["pads"] if pads is None else pads.tolist())
    amounts = [(0, 0)] * x.ndim
    for axis, amount in zip(range(x.ndim) if axes is None else axes.tolist(), given, strict=True):
        amounts[axis] = amount
    mode = attributes.get("mode", "constant")
    if mode != "constant":
        return _pad_from_inside(x, amounts, mode)
    return F.pad(x, flat(amounts), value=attributes.get("value", 0.0) if value is None else value.item())


def _pad_from_inside(x: torch.Tensor, amounts: Pads, mode: str) -> torch.Tensor:
    for axis, (begin, end) in enumerate(amounts):
        if begin or end:
            positions = torch.arange(-begin, x.shape[axis] + end, device=x.device)
            x = x.index_select(axis, _inside(positions, x.shape[axis], mode))
    return x


def _inside(positions: torch.Tensor, length: int, mode: str) -> torch.Tensor:
    """The position in [0, length) whose value stands at each of `positions`."""
    if mode == "edge":
        return positions.clamp(0, length - 1)
    if mode == "wrap":
        return positions.remainder(length)
    if mode == "reflect":  # a triangle wave: the border itself is not repeated
        there_and_back = max(2 * (length - 1), 1)
        folded = positions.remainder(there_and_back)
        return torch.minimum(folded, there_and_back - folded)
    raise InputError(f"Pad: mode={mode!r} is not one of constant, reflect, edge, wrap")
