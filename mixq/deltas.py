"""How the errors of layers add up: the change that each layer alone makes at the network's outputs, and their products.

The outputs of a mix are nearly those of FP32 plus the deltas of its layers. The distance from FP32 that steers the
search is quadratic in them: the relative squared error by definition, the KL divergence to second order, with the
softmax's Fisher information as its form (Amari 1998, section 2). The products of all pairs of deltas therefore
predict any mix, and nothing else of the deltas is kept: as many numbers as pairs of layers, however large the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixq import measures
from mixq.task import Array, Outputs

SKETCH = 2**16  # numbers that a delta is kept as until the products are taken; a random projection where it has more
BLOCKS = 8  # of rows, between which the products' spread is taken
SMALLEST = 1e-12

Key = tuple[str, str]  # layer, scheme


@dataclass(frozen=True)
class Interactions:
    """products: by pairs of `keys`, the product of the two deltas; the diagonal is the error of a layer alone."""

    keys: tuple[Key, ...] = ()
    products: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def diagonal(cls, errors: Mapping[Key, float]) -> Interactions:
        """Of layers whose errors just add up."""
        return cls(tuple(errors), tuple(map(tuple, np.diag(list(errors.values())).tolist())))

    def error(self, schemes: Mapping[str, str]) -> float:
        """Predicted error (KL in nats, else relative squared error) of layers in these schemes, all others in FP32."""
        return self.weighted(np.array([schemes.get(layer) == scheme for layer, scheme in self.keys], np.float64))

    def weighted(self, shares: Array) -> float:
        """Predicted error where each delta, in the order of `keys`, counts with this share."""
        return float(shares @ self.matrix @ shares)

    @cached_property
    def matrix(self) -> Array:
        """`products` as an array."""
        return np.array(self.products, np.float64).reshape(len(self.keys), len(self.keys))


class Deltas:
    """Gathers the deltas of one layer after the other, on the rows of `reference`, FP32's outputs."""

    def __init__(self, reference: Outputs, targets: Array, seed: int = 0) -> None:
        scores = measures.class_scores(reference, targets)
        self._reference, self._targets, self._seed = reference, targets, seed
        self._given = scores is not None and measures.are_probabilities(scores)
        self._chances = None if scores is None else measures.probabilities(scores, self._given)
        self._found: dict[Key, Array] = {}

    def add(self, layer: str, scheme: str, outputs: Outputs) -> None:
        """The outputs of the network with `layer` alone in `scheme`."""
        self._found[layer, scheme] = self._sketched(self._weighted(outputs))

    def interactions(self) -> Interactions:
        """The products of all pairs; those of different deltas are drawn to 0 as far as their rows disagree on them."""
        if not self._found:
            return Interactions()
        stacked = np.stack(list(self._found.values()))  # keys × blocks × numbers
        parts = np.einsum("ibn,jbn->bij", stacked, stacked, optimize=True).astype(np.float64)
        products = _shrunk(parts)
        return Interactions(tuple(self._found), tuple(tuple(map(float, row)) for row in products))

    def _weighted(self, outputs: Outputs) -> Array:
        """The delta, rows × numbers, scaled so that its square sum is its error."""
        if self._chances is None:
            return self._relative(outputs)
        (before,), (after,) = self._reference.values(), (outputs[name] for name in self._reference)
        delta = self._logits(after) - self._logits(before)
        p = self._chances
        return np.asarray(np.sqrt(p / (2 * len(p))) * (delta - (p * delta).sum(-1, keepdims=True)))

    def _relative(self, outputs: Outputs) -> Array:
        floats = {name: value for name, value in self._reference.items() if value.dtype.kind == "f"}
        parts = [np.zeros((len(self._targets), 0))]
        for name, value in floats.items():
            wanted = value.astype(np.float64)
            scale = np.sqrt(max(float((wanted**2).mean()), 1e-30) * wanted.size * len(floats))
            parts.append(((outputs[name] - wanted) / scale).reshape(len(wanted), -1))
        return np.concatenate(parts, axis=1)

    def _logits(self, scores: Array) -> Array:
        wide = scores.astype(np.float64)
        return np.log(np.maximum(wide, SMALLEST)) if self._given else wide

    def _sketched(self, rows: Array) -> Array:
        """Blocks × numbers, by a count sketch (Charikar et al. 2002), which keeps products up to 1 ÷ √SKETCH or so."""
        blocks = [block.reshape(-1) for block in np.array_split(rows, BLOCKS)]
        size = min(SKETCH // BLOCKS, max(block.size for block in blocks))
        rng = np.random.default_rng(self._seed)
        return np.stack([_projected(block, size, rng) for block in blocks]).astype(np.float32)


def _projected(values: Array, size: int, rng: np.random.Generator) -> Array:
    if values.size <= size:
        return np.pad(values, (0, size - values.size))
    places, signs = rng.integers(0, size, values.size), rng.choice(np.array([-1.0, 1.0]), values.size)
    return np.bincount(places, values * signs, size)


def _shrunk(parts: Array) -> Array:
    """The sum over blocks; off its diagonal, times the share of its square that is not noise (Ledoit & Wolf 2004)."""
    total = parts.sum(0)
    beside = ~np.eye(len(total), dtype=bool)
    noise = float((len(parts) * parts.var(0, ddof=1))[beside].sum())
    signal = float((total**2)[beside].sum())
    kept = max(0.0, 1 - noise / signal) if signal > 0 else 0.0
    return np.asarray(np.where(beside, kept * total, total))
