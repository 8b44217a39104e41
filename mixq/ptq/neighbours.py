"""Neighbours: pairs of weights whose products a kernel may add in 16 bits (`Placement.sums_saturate`).

Such kernels take the inputs of an output value two by two, channel after channel. Two weights of one sign with large
codes then add up to more than 16 bits hold. Peers give up a bit of every weight for it (half the range); it is enough
that a channel's scale is as large as its largest pair wants: by a fifth to a third in convolutional networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mixq import affine
from mixq.graph.model import Layer
from mixq.task import Array


def pair_sums(weight: Any, layer: Layer, xp: Any = np) -> Any:
    """The largest |w₁ + w₂| of two neighbours, one a channel of the layer's axis; 0 where a kernel adds no two.

    weight: of the layer, an array of `xp` (numpy or torch). Where the channels of a group are odd in number, kernels
    differ in whether a pair may reach into the next position: any two that follow one another count then.
    """
    positions_outside = xp.moveaxis(xp.moveaxis(weight, layer.channel_axis, 0), 1, -1)
    rows = positions_outside.reshape(weight.shape[layer.channel_axis], -1)
    if _adds_none(layer) or rows.shape[1] == 1:
        return xp.zeros_like(rows[:, 0])
    first, second = (rows[:, :-1], rows[:, 1:]) if _inputs(layer) % 2 else (rows[:, ::2], rows[:, 1::2])
    return xp.amax(xp.abs(first + second), 1)


def with_room(magnitude: Array, weight: Array, layer: Layer, most: float) -> Array:
    """`magnitude` (one a channel, or 0-d), widened so that no pair adds up to more than `most` codes."""
    sums = pair_sums(weight.astype(np.float64), layer)
    return np.asarray(affine.with_room_for_pairs(magnitude, sums if magnitude.ndim else sums.max(), most))


def _adds_none(layer: Layer) -> bool:
    """A table, or a depthwise convolution, whose kernels go on from channel to channel in 32 bits."""
    depthwise = layer.op == "Conv" and _inputs(layer) == 1 and layer.groups == layer.weight_shape[0]
    return depthwise or not layer.multiplies


def _inputs(layer: Layer) -> int:
    """Channels of the input that an output value is made of."""
    if layer.op == "ConvTranspose":
        return layer.weight_shape[0] // layer.groups
    return layer.weight_shape[1 - layer.channel_axis]
