"""Convolution and its transpose, of one to three spatial axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from mixq.twin.ops.signature import Attributes
from mixq.twin.ops.window import Pads, Window, flat, halves, span, window

Convolution = Callable[..., torch.Tensor]

CONVOLUTION: dict[int, Convolution] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Convolution] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x (N, C, *spatial) with weight (M, C / group, *kernel) and bias (M,)."""
    frame = window(attributes, x.shape[2:], weight.shape[2:])
    padding: Sequence[int] = frame.before
    if not frame.symmetric:
        x, padding = F.pad(x, flat(frame.pads)), (0,) * len(frame.pads)
    convolve = CONVOLUTION[len(frame.kernel)]
    return convolve(x, weight, bias, frame.strides, padding, frame.dilations, attributes.get("group", 1))


def conv_transpose(
    attributes: Attributes, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x (N, C, *spatial) with weight (C, M / group, *kernel) and bias (M,)."""
    frame = window(attributes, x.shape[2:], weight.shape[2:])
    extra = attributes.get("output_padding", (0,) * len(frame.kernel))
    pads = _transposed_pads(attributes, x.shape[2:], frame, extra)
    convolve, group = _TRANSPOSED[len(frame.kernel)], attributes.get("group", 1)
    if all(begin == end >= 0 for begin, end in pads):
        before = [begin for begin, _ in pads]
        return convolve(x, weight, bias, frame.strides, before, extra, group, frame.dilations)
    whole = convolve(x, weight, None, frame.strides, 0, extra, group, frame.dilations)
    cropped = F.pad(whole, flat([(-begin, -end) for begin, end in pads]))
    return cropped if bias is None else cropped + bias.reshape(-1, *[1] * len(pads))


def _transposed_pads(attributes: Attributes, sizes: Sequence[int], frame: Window, extra: Sequence[int]) -> Pads:
    """What is cut from the whole output: the pads, or what output_shape or auto_pad=SAME_* leaves to cut."""
    same = attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    wanted = attributes.get("output_shape")
    if wanted is None and not same:
        return frame.pads
    if wanted is None:
        wanted = [size * stride for size, stride in zip(sizes, frame.strides, strict=True)]
    whole = [
        stride * (size - 1) + more + span(kernel, dilation)
        for stride, size, more, kernel, dilation in zip(
            frame.strides, sizes, extra, frame.kernel, frame.dilations, strict=True
        )
    ]
    extra_at_end = attributes.get("auto_pad") == "SAME_UPPER"
    return [halves(length - target, extra_at_end) for length, target in zip(whole, wanted[-len(whole) :], strict=True)]
