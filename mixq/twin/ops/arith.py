"""Arithmetic, element by element (with broadcasting), where ONNX and torch differ."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F

from mixq.twin.ops.signature import Attributes


def divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a / b; integers are truncated toward zero, as in C."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def power(x: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """x ** exponent in the type of x, whatever the type of the exponent."""
    return torch.pow(x, exponent).to(x.dtype)


def modulo(attributes: Attributes, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The remainder with the sign of the divisor, or (fmod=1) of the dividend."""
    return torch.fmod(a, b) if attributes.get("fmod", 0) else torch.remainder(a, b)


def add_all(*tensors: torch.Tensor) -> torch.Tensor:
    return reduce(torch.add, tensors)


def minimum(*tensors: torch.Tensor) -> torch.Tensor:
    return reduce(torch.minimum, tensors)


def maximum(*tensors: torch.Tensor) -> torch.Tensor:
    return reduce(torch.maximum, tensors)


def clip(
    attributes: Attributes, x: torch.Tensor, low: torch.Tensor | None = None, high: torch.Tensor | None = None
) -> torch.Tensor:
    """x in [low, high]; bounds from the inputs (0-d), or the attributes min and max (before opset 11)."""
    if any(bound is not None and bound.requires_grad for bound in (low, high)) or not x.is_floating_point():
        return x if low is None and high is None else torch.clamp(x, low, high)
    bottom = float(attributes.get("min", "-inf") if low is None else low)
    top = float(attributes.get("max", "inf") if high is None else high)
    # hardtanh is a clamp to numbers; on a CPU the gradient of torch 2.13's clamp takes 20 times as long.
    return F.hardtanh(x, min(bottom, top), top)


def cumulative_sum(attributes: Attributes, x: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """Running sums along `axis`; attributes exclusive (leave out the element itself) and reverse (from the end)."""
    dim = int(axis.item())
    if attributes.get("reverse", 0):
        x = x.flip(dim)
    sums = torch.cumsum(x, dim, dtype=x.dtype)
    if attributes.get("exclusive", 0):
        sums = sums - x
    return sums.flip(dim) if attributes.get("reverse", 0) else sums


def is_inf(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """Whether x is +∞ (unless detect_positive=0) or −∞ (unless detect_negative=0)."""
    infinite = torch.isinf(x)
    if not attributes.get("detect_positive", 1):
        infinite = infinite & (x < 0)
    if not attributes.get("detect_negative", 1):
        infinite = infinite & (x > 0)
    return infinite


def triangle(attributes: Attributes, x: torch.Tensor, diagonal: torch.Tensor | None = None) -> torch.Tensor:
    """The upper (upper=1, the default) or lower triangle of the last two axes; zero elsewhere."""
    offset = 0 if diagonal is None else int(diagonal.item())
    return torch.triu(x, offset) if attributes.get("upper", 1) else torch.tril(x, offset)
