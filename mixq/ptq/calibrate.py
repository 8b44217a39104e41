"""Recipe step "calibrate": qparams of activations from observers, of weights per channel from their magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixq import affine
from mixq.affine import QParams
from mixq.calibration import Statistics, get_observer
from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.graph.plan import Plan
from mixq.task import Array


@dataclass(frozen=True)
class Calibrate:
    """activations: an observer's name; weights: "minmax", or "mse" for the scale of least squared error a channel."""

    activations: str = "mse"
    weights: str = "mse"

    def __post_init__(self) -> None:
        get_observer(self.activations)
        if self.weights not in WEIGHT_SCALES:
            raise InputError(f"weights: {self.weights!r} is unknown; known: {', '.join(WEIGHT_SCALES)}")

    def activation_qparams(self, statistics: Statistics, plan: Plan) -> dict[str, QParams]:
        """One value for all tensors of a group: the hull of their ranges."""
        observer = get_observer(self.activations)
        found: dict[str, QParams] = {}
        for group in plan.groups:
            ranges = [statistics.range(name, observer) for name in group]
            qparams = affine.asymmetric(min(low for low, _ in ranges), max(high for _, high in ranges))
            found |= dict.fromkeys(group, qparams)
        return found

    def weight_qparams(self, layer: Layer, weight: Array, bias: Array | None, data: QParams) -> QParams:
        """s8 per output channel; widened where the bias would leave 32 bits in units of input scale × weight scale."""
        axis = layer.channel_axis
        channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        magnitude = WEIGHT_SCALES[self.weights](channels.astype(np.float64))
        if bias is not None and bias.shape == magnitude.shape:
            magnitude = affine.with_room_for_bias(magnitude, bias, data.scale)
        return affine.symmetric(magnitude, axis)


def _largest(channels: Array) -> Array:
    return np.asarray(np.abs(channels).max(1))


def _least_squared_error(channels: Array) -> Array:
    """Of 40 fractions of the largest magnitude, the one with the least rounding and clipping error, a channel."""
    largest = _largest(channels)
    best, best_error = largest, np.full(len(channels), np.inf)
    for fraction in np.linspace(1.0, 0.5, 40):
        scale = np.maximum(largest * fraction / affine.S8[1], affine.SMALLEST_SCALE)[:, None]
        error = ((affine.values(affine.codes(channels, scale, 0, affine.S8), scale, 0) - channels) ** 2).sum(1)
        best = np.where(error < best_error, largest * fraction, best)
        best_error = np.minimum(error, best_error)
    return best


WEIGHT_SCALES: dict[str, Callable[[Array], Array]] = {"minmax": _largest, "mse": _least_squared_error}
