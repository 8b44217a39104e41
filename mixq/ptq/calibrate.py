"""Recipe step "calibrate": ranges of activations from observers, of weights from their magnitudes.

Where this CPU's kernels add neighbouring products in 16 bits, scales of weights are widened until all sums fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mixq import affine
from mixq.calibration import OBSERVERS
from mixq.errors import InputError
from mixq.graph.model import Layer
from mixq.ptq.neighbours import with_room
from mixq.ptq.observer_choice import BEST, best_ranges, observed_ranges
from mixq.ptq.state import Material, Prepared
from mixq.task import Array


@dataclass(frozen=True)
class Calibrate:
    """activations: an observer's name, or "best" for the one that leaves the least error at the layer's output, chosen
    tensor by tensor; weights: "minmax", or "mse" for the scale of least squared error; granularity: one scale a
    "channel", or one a "tensor", for hardware that has no other."""

    activations: str = "mse"
    weights: str = "mse"
    granularity: str = "channel"

    def __post_init__(self) -> None:
        if self.activations not in (*OBSERVERS, BEST):
            raise InputError(f"activations: {self.activations!r} is unknown; known: {', '.join((*OBSERVERS, BEST))}")
        if self.weights not in WEIGHT_SCALES:
            raise InputError(f"weights: {self.weights!r} is unknown; known: {', '.join(WEIGHT_SCALES)}")
        if self.granularity not in GRANULARITIES:
            raise InputError(f"granularity: {self.granularity!r} is unknown; known: {', '.join(GRANULARITIES)}")

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """Ranges of all tensors that some configuration may quantize, magnitudes of all layers."""
        if self.activations == BEST:
            ranges = best_ranges(prepared, material)
        else:
            ranges = observed_ranges(prepared, self.activations)
        weighted = [layer for layer in prepared.graph.layers if layer.weight is not None]
        magnitudes = {layer.name: self._magnitude(prepared, layer, material) for layer in weighted}
        return replace(prepared, ranges=ranges, magnitudes=magnitudes)

    def _magnitude(self, prepared: Prepared, layer: Layer, material: Material) -> Array:
        weight = prepared.weight(layer.name).astype(np.float64)
        channels = np.moveaxis(weight, layer.channel_axis, 0).reshape(weight.shape[layer.channel_axis], -1)
        if self.granularity == "tensor":
            found = np.asarray(WEIGHT_SCALES[self.weights](channels.reshape(1, -1))[0])
        else:
            found = WEIGHT_SCALES[self.weights](channels)
        return with_room(found, weight, layer, affine.EITHER) if material.placement.sums_saturate else found


MOST_VALUES = 2**13
GRANULARITIES = ("channel", "tensor")


def _largest(channels: Array) -> Array:
    return np.asarray(np.abs(channels).max(1))


def _least_squared_error(channels: Array) -> Array:
    """Of 40 fractions of the largest magnitude, the one with the least rounding and clipping error, a channel.

    Of a channel with very many values (an embedding's), at every n-th of them.
    """
    largest = _largest(channels)
    channels = channels[:, :: max(1, channels.shape[1] // MOST_VALUES)]
    best, best_error = largest, np.full(len(channels), np.inf)
    for fraction in np.linspace(1.0, 0.5, 40):
        scale = np.maximum(largest * fraction / affine.S8[1], affine.SMALLEST_SCALE)[:, None]
        error = ((affine.values(affine.codes(channels, scale, 0, affine.S8), scale, 0) - channels) ** 2).sum(1)
        best = np.where(error < best_error, largest * fraction, best)
        best_error = np.minimum(error, best_error)
    return best


WEIGHT_SCALES: dict[str, Callable[[Array], Array]] = {"minmax": _largest, "mse": _least_squared_error}
