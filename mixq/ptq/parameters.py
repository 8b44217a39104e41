"""What is prepared, for one plan: the qparams and values that lowering needs."""

from __future__ import annotations

from collections.abc import Iterable

from mixq import affine
from mixq.affine import QParams
from mixq.graph.plan import Plan
from mixq.graph.quantize import Parameters
from mixq.ptq.state import Prepared


def parameters(prepared: Prepared, plan: Plan, layers: Iterable[str]) -> Parameters:
    """Finished parameters of the INT8 layers `layers`, where their pairs stand as in `plan`.

    All tensors of a group have the qparams of the hull of their ranges. Weights are s8 per output channel, widened
    where the bias would leave 32 bits in units of input scale × weight scale.
    """
    activations: dict[str, QParams] = {}
    for group in plan.groups:
        ranges = [prepared.ranges[name] for name in group]
        qparams = affine.asymmetric(min(low for low, _ in ranges), max(high for _, high in ranges))
        activations |= dict.fromkeys(group, qparams)
    weights = {}
    for name in layers:
        magnitude, bias = prepared.magnitudes[name], prepared.bias(name)
        if bias is not None and bias.shape == magnitude.shape:
            magnitude = affine.with_room_for_bias(magnitude, bias, activations[plan.inputs[name]].scale)
        weights[name] = affine.symmetric(magnitude, prepared.graph.by_name[name].channel_axis)
    values = {key: value for key, value in prepared.values.items() if key[0] in weights}
    return Parameters(activations, weights, values)
