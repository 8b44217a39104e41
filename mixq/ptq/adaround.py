"""Recipe step "adaround": each weight up or down, as the error at the layer's output wants it.

The problem is that of AdaRound (Nagel et al. 2020, equation 13): of all roundings up or down, the one of least squared
error at the layer's output, here against the layer's real quantized input. Its objective is a quadratic form in the
inputs' second moments; instead of a relaxed problem by gradients, coordinate descent lowers it weight by weight, to a
point where no single flip helps. A layer's bias takes the mean of the error, so that rounding has only to mind what
varies: the moments are about the means then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mixq import affine
from mixq.ptq.matrix import LayerMatrix
from mixq.ptq.moments import Moments, collect_moments, in_parts, joined, matrices_of
from mixq.ptq.networks import Walk
from mixq.ptq.state import Material, Prepared
from mixq.task import Array

BLOCK = 128  # columns whose effect on each other is kept up to date weight by weight


@dataclass(frozen=True)
class AdaRound:
    """sweeps: times that every weight is looked at, at most; drift: the share of the error that earlier layers leave in
    the input which a layer makes up for (all of it fits the noise of few samples too); shrinkage: how far the inputs'
    second moments are drawn to their diagonal, so that few samples do not mislead."""

    sweeps: int = 10
    drift: float = 0.5
    shrinkage: float = 0.01

    def __post_init__(self) -> None:
        if self.sweeps < 1 or not (0 <= self.shrinkage <= 1 and 0 <= self.drift <= 1):
            raise ValueError("sweeps must be at least 1, drift and shrinkage from 0 to 1")

    def apply(self, prepared: Prepared, material: Material) -> Prepared:
        """`prepared` with weights that are their codes' values, and the biases that go with them."""
        names = [layer.name for layer in prepared.graph.matrices]
        walk = Walk(prepared.graph, material)
        matrices = matrices_of(prepared.graph, prepared.graph.matrices)
        for name in material.told(names, "rounding layer"):  # one by one: each sees what the ones before it really give
            layer, matrix = prepared.graph.by_name[name], matrices[name]
            moments = collect_moments(walk.inputs(prepared, layer), matrix, material)
            found = self._weight_and_bias(prepared, matrix, moments)
            prepared = replace(prepared, values={**prepared.values, **found})
        return prepared

    def _weight_and_bias(
        self, prepared: Prepared, matrix: LayerMatrix, moments: Moments
    ) -> dict[tuple[str, int], Array]:
        """By (layer, input index). A layer's bias takes the mean of its error, its weight's codes what is left."""
        layer, graph = matrix.layer, prepared.graph
        weight = matrix.rows(graph.weight(layer.weight)).astype(np.float64)
        scale = matrix.by_row(prepared.weight_qparams(layer.name).scale).astype(np.float64)
        biased = layer.bias is not None and matrix.gain != 0
        codes = self._rounded(weight / scale, moments.central() if biased else moments)
        values = {(layer.name, 1): matrix.weight((codes * scale).astype(np.float32))}
        if biased:
            own = graph.weight(str(layer.bias))
            change = matrix.gain * self._mean_error(weight, codes * scale, moments)
            values[layer.name, 2] = (own + change.reshape(own.shape)).astype(np.float32)
        return values

    def _mean_error(self, weight: Array, rounded: Array, moments: Moments) -> Array:
        """(w − ŵ) E x̂ + w E (x − x̂), of which `drift` is taken: (groups, rows, 1)."""
        q, x = (joined(total / moments.count, weight.shape[-1])[..., None] for total in (moments.q, moments.x))
        mean: Array = (weight - rounded) @ q + self.drift * weight @ (x - q)
        return mean

    def _rounded(self, wanted: Array, moments: Moments) -> Array:
        """`wanted` (groups, rows, columns) as codes; in parts where it has many columns."""
        parts = in_parts(wanted.transpose(1, 0, 2)).transpose(1, 0, 2)
        return joined(self._codes(parts, moments).transpose(1, 0, 2), wanted.shape[-1]).transpose(1, 0, 2)

    def _codes(self, wanted: Array, moments: Moments) -> Array:
        """Codes, in the shape of the weight ÷ scale `wanted` (groups × parts, rows, columns).

        With codes c, w in units of the scale, and e = c − w, the error of a row is e·x̂ + w·(x̂ − x); the mean of its
        square is e H eᵀ + 2 e·d + a constant, with H = E x̂x̂ᵀ and d = w E (x̂ − x)x̂ᵀ, of which `drift` is taken.
        """
        form = moments.qq / moments.count
        drift = self.drift * (wanted @ (form - moments.xq / moments.count))
        return descend(wanted, _shrunk(form, self.shrinkage), drift, self.sweeps)


def descend(wanted: Array, form: Array, drift: Array, sweeps: int) -> Array:
    """Codes c, each `wanted` rounded up or down, that make e H eᵀ + 2 e·d small for every row e of c − wanted.

    wanted, drift (d): (groups, rows, columns); form (H): (groups, columns, columns). Starts from the nearest codes; a
    flip is made where it lowers the sum, so that it only falls.
    """
    low = np.clip(np.floor(wanted), *affine.S8).astype(np.float32)
    high = np.clip(np.ceil(wanted), *affine.S8).astype(np.float32)
    codes = np.clip(np.rint(wanted), *affine.S8).astype(np.float32)
    form = form.astype(np.float32)
    slope = ((codes - wanted) @ form + drift).astype(np.float32)
    columns = wanted.shape[-1]
    for _ in range(sweeps):
        flips = 0
        for start in range(0, columns, BLOCK):
            block = slice(start, min(start + BLOCK, columns))
            moves = _sweep(codes[..., block], (low + high)[..., block], slope[..., block], form[:, block, block])
            if moves.any():
                flips += int(np.count_nonzero(moves))
                slope += moves @ form[:, block]
        if not flips:
            break
    return codes


def _sweep(codes: Array, both: Array, slope: Array, form: Array) -> Array:
    """Flip codes of a block where that helps, in place; how far each moved. both: low + high."""
    slope, moves = slope.copy(), np.zeros_like(codes)
    for column in range(codes.shape[-1]):
        step = both[..., column] - 2 * codes[..., column]
        step = np.where(step * (2 * slope[..., column] + step * form[:, column, column, None]) < 0, step, 0)
        codes[..., column] += step
        moves[..., column] = step
        slope += step[..., None] * form[:, None, column]
    return moves


def _shrunk(form: Array, share: float) -> Array:
    """`form` drawn to its diagonal."""
    kept = np.eye(form.shape[-1], dtype=form.dtype)
    return form * ((1 - share) + share * kept)
