"""What is prepared, for one plan: the qparams and values that lowering needs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mixq import affine
from mixq.affine import QParams
from mixq.graph.plan import Plan
from mixq.graph.quantize import Parameters
from mixq.ptq.state import Prepared


def parameters(prepared: Prepared, plan: Plan, layers: Iterable[str]) -> Parameters:
    """Finished parameters of the INT8 layers `layers`, those of them that read codes where their pairs stand in `plan`.

    All tensors of a group have the qparams of the hull of their ranges. Weights are s8, their scales widened where the
    bias would leave 32 bits in units of input scale × weight scale.
    """
    activations: dict[str, QParams] = {}
    for group in plan.groups:
        ranges = [prepared.ranges[name] for name in group]
        codes = affine.even if plan.signed & set(group) else affine.asymmetric
        qparams = codes(min(low for low, _ in ranges), max(high for _, high in ranges))
        activations |= dict.fromkeys(group, qparams)
    weights = {}
    for name in layers:
        layer = prepared.graph.by_name[name]
        if layer.weight is None:
            continue
        magnitude, bias = prepared.magnitudes[name], prepared.bias(name) if layer.adds_bias else None
        if bias is not None and name in plan.inputs and (magnitude.ndim == 0 or bias.shape == magnitude.shape):
            most = np.abs(bias).max() if magnitude.ndim == 0 else bias
            magnitude = affine.with_room_for_bias(magnitude, most, activations[plan.inputs[name][0]].scale)
        weights[name] = prepared.qparams_of(name, magnitude)
    values = {key: value for key, value in prepared.values.items() if key[0] in weights}
    return Parameters(activations, weights, values)
