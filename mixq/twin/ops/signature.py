"""What an op of the table is, and how a plain torch function becomes one.

An op takes a node's attributes and the list of its inputs (None where an optional one is left out). The functions
of this package are written with named tensors instead, `f(attributes, x, weight, bias=None)`; `spread` joins the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Attributes = Mapping[str, Any]
Inputs = Sequence[torch.Tensor | None]
Outputs = torch.Tensor | tuple[torch.Tensor, ...]
Op = Callable[[Attributes, Inputs], Outputs]


def spread(function: Callable[..., Outputs]) -> Op:
    """The op that calls `function(attributes, *inputs)`."""

    def op(attributes: Attributes, inputs: Inputs) -> Outputs:
        return function(attributes, *inputs)

    return op


def plain(function: Callable[..., Outputs]) -> Op:
    """The op that calls `function(*inputs)`: no attribute matters."""

    def op(_: Attributes, inputs: Inputs) -> Outputs:
        return function(*inputs)

    return op
