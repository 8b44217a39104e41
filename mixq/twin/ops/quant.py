"""QuantizeLinear and DequantizeLinear, differentiable.

The rounding is passed straight through in the gradient (Bengio et al. 2013), the clipping is not: with
q = clip(round(x / s) + z), dq/dx is 1 / s where q was not clipped and 0 where it was, so that a pair has the gradient
of the identity inside the range and 0 outside (Jacob et al. 2018, section 3). The gradient for the scale follows by the
chain rule and is the one of learned step sizes (Esser et al. 2020, section 2.1).

Codes are kept in float32, exact up to 2²⁴: they have a gradient, and torch has no integer convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from mixq.affine import along, codes, rounded, values
from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes
from mixq.twin.tensors import storage


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, low: int, high: int) -> torch.Tensor:
        return torch.clip(q, low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0], None, None


_clip: Callable[[torch.Tensor, int, int], torch.Tensor] = _Clip.apply


class _StraightThrough:
    """torch, as `mixq.affine.codes` needs it, with the gradients above."""

    round = staticmethod(_Round.apply)

    @staticmethod
    def clip(q: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """q in [low, high]; the gradient passes where q is in it, the limits included.

        hardtanh gives the gradient: on a CPU that of torch 2.13's clip takes 20 times as long. As hardtanh's is 0 at
        its limits, these stand half a code outside.
        """
        return _clip(F.hardtanh(q, low - 0.5, high + 0.5), low, high)


def quantize(
    attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """The integer codes of x, as float32; scale and zero point are 0-d, or 1-d along `axis`.

    Raises InputError for quantization in blocks.
    """
    axis = _axis(attributes, scale)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
    limits = _limits(attributes, zero_point)
    scale, zero = along(scale, axis, x.ndim), along(zero, axis, x.ndim)
    quantized: torch.Tensor = codes(x, scale, zero, limits, xp=_StraightThrough)
    return quantized


def dequantize(
    attributes: Attributes, q: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """scale · (q − zero_point) for codes q of any integer type or float32; shapes and errors as `quantize`."""
    axis = _axis(attributes, scale)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
    real: torch.Tensor = values(q.to(scale.dtype), along(scale, axis, q.ndim), along(zero, axis, q.ndim))
    return real


class _FakeQuantize(torch.autograd.Function):
    """The two functions above as one, with the same gradients; scale and zero point broadcast over x."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, limits: tuple[int, int]
    ) -> torch.Tensor:
        single = zero.numel() == 1  # torch clips to numbers in half the time
        y: torch.Tensor = rounded(x, scale, zero.item() if single else zero, limits, xp=torch)
        ctx.save_for_backward(x, y, scale, zero)
        ctx.limits = limits
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (x, y, scale, zero) = gradients, ctx.saved_tensors
        low, high = (ctx.limits[0] - 0.5 - zero) * scale, (ctx.limits[1] + 0.5 - zero) * scale
        if scale.numel() == 1:
            to_x = torch.ops.aten.hardtanh_backward(gradient, x, low.item(), high.item())
        else:
            to_x = gradient * ((x >= low) & (x <= high))
        to_scale = _scale_gradient(gradient, to_x, x, y, scale) if ctx.needs_input_grad[1] else None
        return to_x if ctx.needs_input_grad[0] else None, to_scale, None, None


def _scale_gradient(
    gradient: torch.Tensor, to_x: torch.Tensor, x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """dy/ds is (y − x) / s inside the range and y / s outside (Esser et al. 2020, equation 3)."""
    if scale.numel() == 1:
        total = _product(gradient, y) - _product(to_x, x)
    else:
        others = [axis for axis, size in enumerate(scale.shape) if size == 1]
        total = (gradient * y - to_x * x).sum(others, keepdim=True)
    return (total / scale).reshape(scale.shape)


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Σ left · right, without a copy where both lie in memory alike."""
    if left.stride() == right.stride() and left.is_contiguous(memory_format=torch.channels_last) and left.ndim == 4:
        left, right = left.permute(0, 2, 3, 1), right.permute(0, 2, 3, 1)
    return torch.dot(left.flatten(), right.flatten())


_fake_quantize: Callable[..., torch.Tensor] = _FakeQuantize.apply


def fake_quantize(
    attributes: Attributes, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None
) -> torch.Tensor:
    """`dequantize` of `quantize`, in half their time; float32 in, float32 out. Shapes and errors as theirs."""
    axis = _axis(attributes, scale)
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return _fake_quantize(x, along(scale, axis, x.ndim), along(zero, axis, x.ndim), _limits(attributes, zero_point))


def _axis(attributes: Attributes, scale: torch.Tensor) -> int | None:
    """The axis of the channels; None per tensor."""
    if attributes.get("block_size", 0) or scale.ndim > 1:
        raise InputError("quantization in blocks (block_size) is not supported; quantize per tensor or per axis")
    return None if scale.numel() == 1 else attributes.get("axis", 1)


def _limits(attributes: Attributes, zero_point: torch.Tensor | None) -> tuple[int, int]:
    """Smallest and largest code: of the zero point's type, else of output_dtype, else of uint8."""
    if zero_point is not None:
        dtype = zero_point.dtype
    else:
        dtype = storage(attributes["output_dtype"]) if attributes.get("output_dtype", 0) else torch.uint8
    info = torch.iinfo(dtype)
    return info.min, info.max
