"""GridSample: values at the places that a grid names."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes

# ONNX's names, those before opset 20 too, and torch's.
_MODE = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}


def grid_sample(attributes: Attributes, x: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """x (N, C, *spatial) at grid (N, *output, axes): positions in [-1, 1], the last axis of x first.

    Raises InputError unless x has two spatial axes, or three and mode is linear or nearest.
    """
    mode = attributes.get("mode", "linear")
    if mode not in _MODE:
        raise InputError(f"GridSample: mode={mode!r} is not one of {', '.join(_MODE)}")
    axes = x.ndim - 2
    if axes not in (2, 3) or (axes == 3 and _MODE[mode] == "bicubic"):
        raise InputError(f"GridSample: mode={mode!r} over {axes} spatial axes is not supported; use linear over 2 or 3")
    padding, align = attributes.get("padding_mode", "zeros"), bool(attributes.get("align_corners", 0))
    return F.grid_sample(x, grid.to(x.dtype), _MODE[mode], padding, align)
