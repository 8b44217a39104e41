"""Pooling over windows, and over all of space."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from mixq.twin.ops.conv import CONVOLUTION
from mixq.twin.ops.signature import Attributes
from mixq.twin.ops.window import Window, flat, overhang, window

_MAXIMUM: dict[int, Callable[..., torch.Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., torch.Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def max_pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """The largest value of each window of x (N, C, *spatial); the indices are not offered."""
    frame = window(attributes, x.shape[2:], attributes["kernel_shape"])
    pool, ceil_mode = _MAXIMUM[len(frame.kernel)], bool(attributes.get("ceil_mode", 0))
    if _torch_pads(frame):
        return pool(x, frame.kernel, frame.strides, frame.before, frame.dilations, ceil_mode)
    beyond = flat(overhang(frame, x.shape[2:], ceil_mode))
    padded = F.pad(F.pad(x, flat(frame.pads), value=_lowest(x.dtype)), beyond, value=_lowest(x.dtype))
    return pool(padded, frame.kernel, frame.strides, 0, frame.dilations)


def average_pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """The mean of each window of x (N, C, *spatial); padding counts as zeros if count_include_pad, else not at all."""
    frame = window(attributes, x.shape[2:], attributes["kernel_shape"])
    ceil_mode, include = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    if _torch_pads(frame) and all(dilation == 1 for dilation in frame.dilations):
        return _AVERAGE[len(frame.kernel)](x, frame.kernel, frame.strides, frame.before, ceil_mode, include)
    beyond = flat(overhang(frame, x.shape[2:], ceil_mode))
    cells = x.new_ones((1, 1, *x.shape[2:]))
    counted = F.pad(F.pad(cells, flat(frame.pads), value=float(include)), beyond)
    return _sums(F.pad(F.pad(x, flat(frame.pads)), beyond), frame) / _sums(counted, frame)


def lp_pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    """The p-norm of each window of x (N, C, *spatial), where padding counts as zeros."""
    frame, p = window(attributes, x.shape[2:], attributes["kernel_shape"]), attributes.get("p", 2)
    beyond = flat(overhang(frame, x.shape[2:], bool(attributes.get("ceil_mode", 0))))
    sums = _sums(F.pad(F.pad(x.abs() ** p, flat(frame.pads)), beyond), frame)
    some = sums > 0  # at 0 the root's slope is infinite, and its product with 0 would be NaN
    return torch.where(some, torch.where(some, sums, 1.0) ** (1 / p), 0.0)


def global_average_pool(x: torch.Tensor) -> torch.Tensor:
    return torch.mean(x, tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    return torch.amax(x, tuple(range(2, x.ndim)), keepdim=True)


def global_lp_pool(attributes: Attributes, x: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(x, attributes.get("p", 2), tuple(range(2, x.ndim)), keepdim=True)
    return norm


def _torch_pads(frame: Window) -> bool:
    """Whether torch's pools take these pads themselves: the same on both sides, at most half of the kernel."""
    return frame.symmetric and all(
        2 * begin <= kernel for begin, kernel in zip(frame.before, frame.kernel, strict=True)
    )


def _lowest(dtype: torch.dtype) -> float:
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _sums(x: torch.Tensor, frame: Window) -> torch.Tensor:
    """The sum of each window; a convolution, because torch's average pools know no dilation."""
    ones = x.new_ones((1, 1, *frame.kernel))
    planes = x.flatten(0, 1).unsqueeze(1)
    sums = CONVOLUTION[len(frame.kernel)](planes, ones, None, frame.strides, 0, frame.dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])
