"""Recipe step "bias_correction": what rounding the weights adds to a layer's mean output, taken off its bias.

Bias correction (Nagel et al. 2019, section 4.2) with the inputs' means from calibration data: (W − Ŵ) E x̂, where x̂ is
what the INT8 network gives the layer. What earlier layers shift is left to their own correction; made up for again
here, it would be corrected several times over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mixq.ptq.moments import in_turn, matrices_of, mean_columns
from mixq.ptq.state import Material, Prepared
from mixq.task import Array


@dataclass(frozen=True)
class BiasCorrection:
    """Of layers that have one; where AdaRound has rounded, the bias goes with the codes, and is left as it is."""

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """`prepared` with corrected biases."""
        values: dict[tuple[str, int], Array] = {}
        layers = [layer for layer in prepared.graph.layers if (layer.name, 1) not in prepared.values]
        biased = [layer for layer in layers if layer.bias is not None]
        for part in in_turn(biased, material, len(biased)):
            means = mean_columns(prepared, material, part)
            for name, matrix in matrices_of(prepared.graph, part).items():
                layer = prepared.graph.by_name[name]
                lost = matrix.rows(prepared.own_weight(name) - prepared.rounded(name))
                change = matrix.gain * lost @ means[name][..., None]
                own = prepared.graph.weight(str(layer.bias))
                values[name, 2] = (own + change.reshape(own.shape)).astype(np.float32)
        return replace(prepared, values={**prepared.values, **values})
