"""Resize: one axis at a time, every output position a weighted sum of a few input positions ("taps").

nearest takes 1 tap, linear 2, cubic 4 (Keys 1981, equation 4). Coordinates are computed in float64, as the ONNX
reference evaluator does: in float32 a position may round to the other neighbor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose

import torch

from mixq.errors import InputError
from mixq.twin.ops.signature import Attributes


@dataclass(frozen=True, slots=True)
class _Axis:
    """One resized axis: its place, lengths before and after, and the scale by which coordinates are divided."""

    place: int
    length: int
    resized: int
    scale: float

    @property
    def width(self) -> float:
        """The resized length before it was rounded to an integer; coordinates refer to this one."""
        return self.length * self.scale

    @property
    def same(self) -> bool:
        return self.length == self.resized and isclose(self.scale, 1.0)


def resize(
    attributes: Attributes,
    x: torch.Tensor,
    roi: torch.Tensor | None = None,
    scales: torch.Tensor | None = None,
    sizes: torch.Tensor | None = None,
) -> torch.Tensor:
    """x with some axes made longer or shorter by `scales`, or to `sizes`.

    Raises InputError for antialias=1 and for coordinate_transformation_mode=tf_crop_and_resize (the only use of roi).
    """
    if attributes.get("antialias", 0):
        raise InputError("Resize: antialias=1 is not supported; export the model without it")
    for axis in _resized_axes(attributes, x.shape, scales, sizes):
        if not axis.same:
            x = _resize_axis(attributes, x, axis)
    return x


def _resized_axes(
    attributes: Attributes, shape: Sequence[int], scales: torch.Tensor | None, sizes: torch.Tensor | None
) -> list[_Axis]:
    places = [place % len(shape) for place in attributes.get("axes", range(len(shape)))]
    lengths = [shape[place] for place in places]
    if sizes is None or not sizes.numel():
        if scales is None:
            raise InputError("Resize: neither scales nor sizes is given")
        factors = scales.tolist()
        resized = [int(length * factor) for length, factor in zip(lengths, factors, strict=True)]
    else:
        resized, factors = _fitted(attributes.get("keep_aspect_ratio_policy", "stretch"), lengths, sizes.tolist())
    return [_Axis(*axis) for axis in zip(places, lengths, resized, factors, strict=True)]


def _fitted(policy: str, lengths: list[int], wanted: list[int]) -> tuple[list[int], list[float]]:
    """Lengths and scales for the wanted lengths; not_larger and not_smaller scale all axes alike."""
    factors = [size / length for size, length in zip(wanted, lengths, strict=True)]
    if policy == "stretch":
        return wanted, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [int(length * factor + 0.5) for length in lengths], [factor] * len(lengths)


def _resize_axis(attributes: Attributes, x: torch.Tensor, axis: _Axis) -> torch.Tensor:
    coordinates = _coordinates(attributes.get("coordinate_transformation_mode", "half_pixel"), axis).to(x.device)
    mode = attributes.get("mode", "nearest")
    if mode == "nearest":
        nearest = _nearest(attributes.get("nearest_mode", "round_prefer_floor"), coordinates)
        return x.index_select(axis.place, nearest.clamp(0, axis.length - 1))
    floor = torch.floor(coordinates)
    weights = _linear(coordinates - floor) if mode == "linear" else _cubic(attributes, coordinates - floor)
    first = floor.to(torch.int64) - (len(weights) // 2 - 1)
    return _weighted(x, axis, first, weights, bool(attributes.get("exclude_outside", 0)))


def _coordinates(mode: str, axis: _Axis) -> torch.Tensor:
    """Where each output position lies on the input axis, float64."""
    position = torch.arange(axis.resized, dtype=torch.float64)
    if mode == "asymmetric":
        return position / axis.scale
    if mode == "align_corners":
        return position * (axis.length - 1) / (axis.width - 1) if axis.width != 1 else torch.zeros_like(position)
    if mode == "pytorch_half_pixel" and axis.width == 1:
        return torch.full_like(position, -0.5)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (position + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        offset = axis.length / 2 * (1 - axis.resized / axis.width)
        return offset + (position + 0.5) / axis.scale - 0.5
    raise InputError(f"Resize: coordinate_transformation_mode={mode!r} is not supported; use half_pixel or asymmetric")


def _nearest(mode: str, coordinates: torch.Tensor) -> torch.Tensor:
    rounded = {
        "round_prefer_floor": torch.ceil(coordinates - 0.5),
        "round_prefer_ceil": torch.floor(coordinates + 0.5),
        "floor": torch.floor(coordinates),
        "ceil": torch.ceil(coordinates),
    }
    return rounded[mode].to(torch.int64)


def _linear(fraction: torch.Tensor) -> list[torch.Tensor]:
    return [1 - fraction, fraction]


def _cubic(attributes: Attributes, fraction: torch.Tensor) -> list[torch.Tensor]:
    a: float = attributes.get("cubic_coeff_a", -0.75)

    def near(t: torch.Tensor) -> torch.Tensor:
        return (t * (a + 2) - (a + 3)) * t * t + 1

    def far(t: torch.Tensor) -> torch.Tensor:
        return ((t * a - 5 * a) * t + 8 * a) * t - 4 * a

    return [far(fraction + 1), near(fraction), near(1 - fraction), far(2 - fraction)]


def _weighted(
    x: torch.Tensor, axis: _Axis, first: torch.Tensor, weights: list[torch.Tensor], exclude_outside: bool
) -> torch.Tensor:
    """The sum over the taps; one outside the axis takes the border's value, or counts for nothing (exclude_outside)."""
    taps = torch.stack([first + step for step in range(len(weights))])
    kept = torch.stack(weights)
    if exclude_outside:
        kept = kept * ((taps >= 0) & (taps < axis.length))
        kept = kept / kept.sum(0)
    inside = taps.clamp(0, axis.length - 1)
    shape = [-1 if place == axis.place else 1 for place in range(x.ndim)]
    factors = [weight.to(x.dtype).reshape(shape) for weight in kept]
    parts = (x.index_select(axis.place, tap) * factor for tap, factor in zip(inside, factors, strict=True))
    total: torch.Tensor = next(parts)
    for part in parts:
        total = total + part
    return total
