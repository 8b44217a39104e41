"""Latent weights: the numbers that training moves, of which the network has the codes (Courbariaux et al. 2015).

A weight that a recipe has rounded (AdaRound) says nothing about how far it is from another code: training from there
moves all weights away from what they were, or none. The latent weight is the FP32 one where that has the chosen code,
else the nearest number that has, a margin off the border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from mixq import affine
from mixq.ptq import Prepared
from mixq.task import Array

MARGIN = 0.1  # of a quantization step


def with_latent_weights(prepared: Prepared, layers: Iterable[str]) -> Prepared:
    """`prepared`, in which the weights of `layers` have the same codes and are as near to FP32's as these let them."""
    found = {
        (layer, index): _latent(prepared, layer)
        for layer in layers
        if (layer, index := prepared.graph.by_name[layer].weight_index) in prepared.values
    }
    return replace(prepared, values={**prepared.values, **found})


def _latent(prepared: Prepared, layer: str) -> Array:
    rounded, qparams = prepared.rounded(layer), prepared.weight_qparams(layer)
    reach = (0.5 - MARGIN) * affine.along(qparams.scale, qparams.axis, rounded.ndim)
    return np.asarray(np.clip(prepared.own_weight(layer), rounded - reach, rounded + reach), np.float32)
