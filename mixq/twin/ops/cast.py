"""Changes of element type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mixq.twin.ops.signature import Attributes
from mixq.twin.tensors import HALF, storage


class _RoundToHalf(torch.autograd.Function):
    """The nearest value of a 16-bit float type, in float32; the gradient passes as it is (straight through)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x.to(dtype).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


_round_to_half: Callable[[torch.Tensor, torch.dtype], torch.Tensor] = _RoundToHalf.apply


def cast(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """x in the type `to`. FLOAT16 and BFLOAT16 round the values and keep them in float32 (mixq.twin.tensors says why).

    Raises InputError for a type that torch does not compute with.
    """
    to = attributes["to"]
    half = HALF.get(to)
    if half is None:
        return x.to(storage(to))
    return _round_to_half(x, half)


def cast_like(attributes: Attributes, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """x in the type of `target`: the one that the graph states (the attribute `to`), else that of the tensor."""
    if "to" in attributes:
        return cast(attributes, x)
    return x.to(target.dtype)
